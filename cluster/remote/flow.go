package remote

import "sync"

// Flow is the sending end of a stream that may lose its oldest: metrics, lines of a
// log. It sends as many as its receiver has granted, and keeps the newest of what
// comes faster. All methods may be called from any goroutine.
//
//	f := remote.NewFlow(1000, func(items []Point, dropped uint64) { r.Send(to, &Points{items, dropped}) })
//	f.Offer(p)                // never waits
//	f.Grant(n)                // when the receiver's grant comes in
//
// and at the other end, in the actor that receives:
//
//	c := remote.NewCredits(100)
//	ctx.Send(from, &Grant{c.Begin()})
//	if n := c.Took(len(m.Items)); n > 0 { ctx.Send(from, &Grant{n}) }
type Flow[T any] struct {
	send func(items []T, dropped uint64)

	mu      sync.Mutex // held while send is called, so that items leave in order
	ring    []T
	first   int // of the ring
	n       int // items in it
	credit  int
	dropped uint64 // since the last send
}

// NewFlow keeps so many items that wait for credit. Send is given those that may
// go, oldest first, with the count of those dropped before them since it was last
// called. It must not block, nor call the Flow.
func NewFlow[T any](keep int, send func(items []T, dropped uint64)) *Flow[T] {
	return &Flow[T]{send: send, ring: make([]T, max(keep, 1))}
}

// Offer adds an item, in place of the oldest where there is no room.
func (f *Flow[T]) Offer(item T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n == len(f.ring) {
		f.first = (f.first + 1) % len(f.ring)
		f.n--
		f.dropped++
	}
	f.ring[(f.first+f.n)%len(f.ring)] = item
	f.n++
	f.flush()
}

// Grant allows so many more.
func (f *Flow[T]) Grant(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.credit += max(n, 0)
	f.flush()
}

// Reset takes all grants back: the receiver is another, or began anew.
func (f *Flow[T]) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.credit = 0
}

func (f *Flow[T]) flush() {
	n := min(f.n, f.credit)
	if n == 0 {
		return
	}
	items := make([]T, n)
	var none T
	for i := range items {
		items[i], f.ring[f.first] = f.ring[f.first], none
		f.first = (f.first + 1) % len(f.ring)
	}
	f.n -= n
	f.credit -= n
	dropped := f.dropped
	f.dropped = 0
	f.send(items, dropped)
}

// Credits is the receiving end: how many items it has room for. It belongs to the
// receiver's mailbox.
type Credits struct {
	window, taken int
}

// NewCredits lets so many items be under way at a time.
func NewCredits(window int) *Credits { return &Credits{window: max(window, 1)} }

// Begin is the first grant, to each sender that (re)starts.
func (c *Credits) Begin() int {
	c.taken = 0
	return c.window
}

// Took counts items that were worked off, and returns what to grant for them: 0
// until half of the window is through.
func (c *Credits) Took(n int) int {
	c.taken += n
	if 2*c.taken < c.window {
		return 0
	}
	n, c.taken = c.taken, 0
	return n
}
