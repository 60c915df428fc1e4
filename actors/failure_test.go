package actors

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

func TestFailuresKeepWhatCallersTellApart(t *testing.T) {
	for _, s := range sentinels {
		err := FailureOf(fmt.Errorf("at step 3: %w", s.err)).Err()
		if !errors.Is(err, s.err) || !strings.HasPrefix(err.Error(), "at step 3: ") {
			t.Errorf("%v comes out as %v", s.err, err)
		}
	}
	err := FailureOf(fmt.Errorf("x: %w", &ring.LostError{Rank: 2, Why: "gone"})).Err()
	var lost *ring.LostError
	if !errors.As(err, &lost) || lost.Rank != 2 {
		t.Errorf("%v names no rank", err)
	}
	if err := FailureOf(fmt.Errorf("x: %w", syscall.ENOSPC)).Err(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v is not the disk's", err)
	}
	if FailureOf(nil).Err() != nil {
		t.Error("no error comes out as one")
	}
}
