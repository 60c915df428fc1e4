package remote

import (
	"slices"
	"testing"

	"github.com/asynkron/protoactor-go/actor"
	"pgregory.net/rapid"
)

func TestFlow(t *testing.T) {
	var got []int
	var dropped []uint64
	f := NewFlow(3, func(items []int, d uint64) { got, dropped = append(got, items...), append(dropped, d) })
	for i := range 10 {
		f.Offer(i) // nothing was granted: 7, 8, 9 are kept
	}
	if len(got) > 0 {
		t.Fatalf("sent without credit: %v", got)
	}
	f.Grant(2)
	f.Grant(-5)
	f.Offer(10)
	f.Offer(11)
	f.Offer(12) // in place of 9
	f.Grant(3)
	f.Offer(13)
	f.Reset()
	f.Offer(14)
	if want := []int{7, 8, 10, 11, 12}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := []uint64{7, 1}; !slices.Equal(dropped, want) {
		t.Errorf("dropped %v, want %v", dropped, want)
	}
	f.Grant(10)
	if want := []int{7, 8, 10, 11, 12, 13, 14}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Whatever is offered and granted, what came and what was dropped is all there
// was, in order, never more than was granted, and the newest are kept.
func TestFlowAccounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keep := rapid.IntRange(1, 8).Draw(t, "keep")
		var got []int
		var dropped uint64
		f := NewFlow(keep, func(items []int, d uint64) { got, dropped = append(got, items...), dropped+d })
		offered, granted := 0, 0
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "offer") {
				f.Offer(offered)
				offered++
			} else {
				n := rapid.IntRange(0, 5).Draw(t, "grant")
				f.Grant(n)
				granted += n
			}
			if len(got) > granted {
				t.Fatalf("%d sent, %d granted", len(got), granted)
			}
		}
		before := len(got)
		f.Grant(100)
		if offered != len(got)+int(dropped) || !slices.IsSorted(got) {
			t.Fatalf("%d offered, %d came, %d dropped: %v", offered, len(got), dropped, got)
		}
		for i, x := range got[before:] { // those that were kept are the newest
			if x != offered-(len(got)-before)+i {
				t.Fatalf("kept %v of %d", got[before:], offered)
			}
		}
	})
}

type (
	points struct {
		Items   []int
		Dropped uint64
	}
	grant struct{ N int }
)

// slow takes points one message at a time, when the test says so.
type slow struct {
	credits *Credits
	sender  *actor.PID
	step    chan struct{}
	took    *list[*points]
}

func (s *slow) Receive(c actor.Context) {
	switch m := c.Message().(type) {
	case *actor.Started:
		c.Send(s.sender, &grant{s.credits.Begin()})
	case *points:
		<-s.step
		s.took.add(m)
		if n := s.credits.Took(len(m.Items)); n > 0 {
			c.Send(s.sender, &grant{n})
		}
	}
}

// A sender that is faster than its receiver, over the network: no more than the
// window is under way, the newest arrive, and the drops are counted.
func TestFlowAcrossNodes(t *testing.T) {
	a, b := start(t, nil, "", 1), start(t, nil, "", 1)
	const n, window, keep = 50000, 64, 100
	granted := newList[int]()
	f := NewFlow(keep, func(items []int, dropped uint64) {
		if err := a.Send(a.PID(b.Self(), "slow"), &points{items, dropped}); err != nil {
			t.Error(err)
		}
	})
	a.spawn(t, "sender", func(c actor.Context) {
		if g, ok := c.Message().(*grant); ok {
			f.Grant(g.N)
			granted.add(g.N)
		}
	})
	s := &slow{credits: NewCredits(window), sender: b.PID(a.Self(), "sender"), step: make(chan struct{}), took: newList[*points]()}
	if _, err := b.system.Root.SpawnNamed(actor.PropsFromProducer(func() actor.Actor { return s }), "slow"); err != nil {
		t.Fatal(err)
	}
	granted.until(t, "the first grant", count[int](1))
	for i := range n {
		f.Offer(i) // the receiver has not taken one yet
	}
	sent := n
	f.mu.Lock()
	sent -= f.n + int(f.dropped)
	f.mu.Unlock()
	if sent != window {
		t.Errorf("%d were sent to one who took none", sent)
	}
	close(s.step)
	items := func(all []*points) (last int, came int, dropped uint64) {
		for _, p := range all {
			came += len(p.Items)
			dropped += p.Dropped
			if len(p.Items) > 0 {
				last = p.Items[len(p.Items)-1]
			}
		}
		return
	}
	all := s.took.until(t, "the newest", func(all []*points) bool { last, _, _ := items(all); return last == n-1 })
	if _, came, dropped := items(all); came != window+keep || dropped != n-window-keep {
		t.Errorf("%d came, %d dropped, of %d", came, dropped, n)
	}
}
