package node

import (
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/runtime/journal"
)

func TestBoard(t *testing.T) {
	var now, cost time.Duration
	writes := 0
	b := &board{
		write: func(*journal.State) error { writes++; now += cost; return nil },
		clock: func() time.Duration { return now },
	}
	st := journal.NewState()
	after := func(kind journal.Kind, want int) {
		t.Helper()
		b.committed(journal.Event{Kind: kind}, st)
		if writes != want {
			t.Errorf("%d writes after %s at %v, want %d", writes, kind, now, want)
		}
	}
	after(journal.Tick, 0) // nothing to write
	after(journal.Decided, 1)
	after(journal.TrialEnded, 2) // it takes no time
	cost = 10 * time.Millisecond
	after(journal.Decided, 3)
	for range 1000 {
		after(journal.TrialEnded, 3)
	}
	now += boardShare * cost
	after(journal.Tick, 4) // the tick brings what was late
	after(journal.Tick, 4)
	after(journal.Decided, 4)
	after(journal.StageDone, 5) // never late
	after(journal.TrialRetried, 5)
	b.flush()
	b.flush()
	if writes != 6 {
		t.Errorf("%d writes after the end", writes)
	}
	// However many events come, a twentieth of the time goes to the file.
	writes, now, b.next = 0, 0, 0
	for now < 10*time.Second {
		now += time.Millisecond
		b.committed(journal.Event{Kind: journal.TrialEnded}, st)
	}
	if spent := time.Duration(writes) * cost; spent > now/boardShare {
		t.Errorf("%v of %v went to %d writes", spent, now, writes)
	}
}
