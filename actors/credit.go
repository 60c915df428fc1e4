package actors

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/runtime/train"
)

// What is only told, metrics and a node's words, travels on credit, since neither
// actors nor their links push back: a sender has at most window of them under way that
// nobody has dealt with. What it can't send meanwhile it makes less of: metrics give
// way to newer ones, words are counted. So a Supervisor that falls behind, or a slow
// link, costs detail and never memory.
const (
	window = 64
	// lostAfter is when a sender without credit sends one nevertheless: what it waits for may
	// have gone down with a connection.
	lostAfter = 2 * time.Second
	maxWords  = 64 // that wait with a clerk
)

// Credit lets who reported go on: all up to its Nth has been dealt with.
type Credit struct {
	Epoch uint64 // of Progress; 0 of Said
	N     uint64
}

// account is what one sender has sent one receiver.
type account struct {
	sent, settled uint64
	last          time.Time // when it sent last
}

// next tells whether the next one may go, and its number.
func (a *account) next(now time.Time) (n uint64, ok bool) {
	if a.sent-a.settled >= window && now.Sub(a.last) < lostAfter {
		return 0, false
	}
	a.sent++
	a.last = now
	return a.sent, true
}

// credit takes a receiver's word.
func (a *account) credit(n uint64) {
	if n <= a.sent {
		a.settled = max(a.settled, n)
	}
}

// due tells a receiver which of what it dealt with to answer by a Credit: each stands
// for all before it.
func due(n uint64) bool { return n%(window/4) == 0 }

// reporter sends what a run measures. The run's goroutine and the worker's mailbox
// share it.
type reporter struct {
	send func(epoch, n uint64, m train.StepMetrics)

	mu sync.Mutex
	account
	epoch uint64
	held  *train.StepMetrics // the newest, while there is no credit
}

// begins starts the account of an epoch: another ring, perhaps another Trial.
func (r *reporter) begins(epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch, r.account = epoch, account{}
}

func (r *reporter) report(m train.StepMetrics) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held != nil {
		m = newer(*r.held, m)
	}
	r.held = &m
	r.flush()
}

func (r *reporter) credit(c *Credit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Epoch == r.epoch {
		r.account.credit(c.N)
		r.flush()
	}
}

// flush sends what is held, if it may; the lock is held.
func (r *reporter) flush() {
	if r.held == nil {
		return
	}
	if n, ok := r.next(time.Now()); ok {
		r.send(r.epoch, n, *r.held)
		r.held = nil
	}
}

// newer is metrics in place of older ones that were not sent: what these alone say
// goes with them.
func newer(old, m train.StepMetrics) train.StepMetrics {
	m.Ring = cmp.Or(m.Ring, old.Ring)
	m.Bits = cmp.Or(m.Bits, old.Bits)
	m.Changes = append(old.Changes[:len(old.Changes):len(old.Changes)], m.Changes...)
	return m
}

// words are lines that wait for credit.
type words struct {
	account
	waiting []string
	dropped int
}

func (w *words) say(text string) {
	if len(w.waiting) == maxWords {
		w.dropped++
		return
	}
	w.waiting = append(w.waiting, text)
}

// next is the next line to send, and its number.
func (w *words) next(now time.Time) (n uint64, text string, ok bool) {
	if len(w.waiting) == 0 {
		return 0, "", false
	}
	if n, ok = w.account.next(now); !ok {
		return 0, "", false
	}
	text = w.waiting[0]
	w.waiting = w.waiting[1:]
	if len(w.waiting) == 0 && w.dropped > 0 {
		w.waiting = append(w.waiting, fmt.Sprintf("%d more messages came faster than they could be passed on; the node's own log has them", w.dropped))
		w.dropped = 0
	}
	return n, text, true
}
