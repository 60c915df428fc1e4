package daemon

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/cluster"
)

// pause waits; it tells whether ctx still lasts.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// oldest sorts members by how long they have been there.
func oldest(ms []cluster.Member) []cluster.Member {
	slices.SortFunc(ms, func(a, b cluster.Member) int { return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.ID, b.ID)) })
	return ms
}
