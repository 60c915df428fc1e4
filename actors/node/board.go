package node

import (
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/runtime/journal"
)

// board keeps leaderboard.json true. It is written after each event as long as that
// takes little of the time: a large one follows at a distance of boardShare times what
// writing it took, and with the next tick of the job's clock at the latest. What ends a
// stage, or the job, is never late. It belongs to the Supervisor's mailbox, and to
// whoever calls flush once that is empty.
type board struct {
	write func(st *journal.State) error
	clock func() time.Duration // monotonic
	late  *journal.State       // not written yet; nil when the file is true
	next  time.Duration        // not before
}

// boardShare is how much longer the time between two writes is than a write.
const boardShare = 20

func newBoard(s *site, dir string) *board {
	begin := time.Now()
	return &board{
		write: func(st *journal.State) error {
			return s.writeJSON(st.Leaderboard(filepath.Base(dir)), "leaderboard.json")
		},
		clock: func() time.Duration { return time.Since(begin) },
	}
}

// committed takes an event.
func (b *board) committed(e journal.Event, st *journal.State) {
	switch e.Kind {
	case journal.Decided, journal.TrialEnded, journal.TrialRetried:
		b.late = st
	case journal.StageDone, journal.SearchClosed, journal.FinalStarted, journal.FinalEnded, journal.Evaluated:
		b.late, b.next = st, 0
	}
	if b.late != nil && b.clock() >= b.next {
		b.flush()
	}
}

// flush writes what is late. A leaderboard that can't be written now is written after
// the next event.
func (b *board) flush() {
	if b.late == nil {
		return
	}
	begin := b.clock()
	_ = b.write(b.late)
	end := b.clock()
	b.late, b.next = nil, end+boardShare*(end-begin)
}
