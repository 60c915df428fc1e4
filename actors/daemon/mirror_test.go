package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/cluster/files"
)

// However many files a folder has, its changes travel in requests that are taken.
func TestChangesInParts(t *testing.T) {
	if got := (change{}).parts(); len(got) > 0 {
		t.Errorf("%+v of nothing", got)
	}
	all := change{Put: folder{}}
	for i := range 40000 {
		all.Put[fmt.Sprintf("steps/make/part-%05d", i)] = files.Ref{Hash: strings.Repeat("0f", 32), Size: 1 << 40}
		all.Drop = append(all.Drop, fmt.Sprintf("steps/make/old-%05d", i))
	}
	put, drop := folder{}, 0
	for _, part := range all.parts() {
		b, err := json.Marshal(part)
		if err != nil || len(b) > maxJobFile/2 {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		maps.Copy(put, part.Put)
		drop += len(part.Drop)
	}
	if !maps.Equal(put, all.Put) || drop != len(all.Drop) {
		t.Errorf("%d and %d of %d and %d", len(put), drop, len(all.Put), len(all.Drop))
	}
}
