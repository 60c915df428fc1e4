package train

import (
	"time"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// balanceEvery is how many steps go between two divisions of the batch, and
// balanceGain by how much a new division must shorten a step to be taken.
const (
	balanceEvery = 8
	balanceGain  = 0.05
)

// balance divides the sequences of a step over the ranks by their speed. All
// ranks hold the same one: it is made from numbers that they have exchanged.
type balance struct {
	bounds []int         // rank r has sequences bounds[r] … bounds[r+1]-1; nil: equal parts
	busy   time.Duration // that this rank computed since the last division
	done   int           // sequences in it
	steps  int
	mark   time.Duration // the run's clock when the part began
}

// part is this rank's part of a step's sequences, lo ≤ i < hi.
func (r *Run) part(total int) (lo, hi int, err error) {
	b := &r.shares
	if r.Balance && r.World > 1 {
		if b.steps == balanceEvery {
			if err := r.divide(total); err != nil {
				return 0, 0, err
			}
		}
		b.steps++
		b.mark = r.Clock()
	}
	if len(b.bounds) == r.World+1 {
		return b.bounds[r.Rank], b.bounds[r.Rank+1], nil
	}
	return r.Rank * total / r.World, (r.Rank + 1) * total / r.World, nil
}

// measured notes that this rank has computed n sequences since part.
func (b *balance) measured(r *Run, n int) {
	if r.Balance && r.World > 1 {
		b.busy += r.Clock() - b.mark
		b.done += n
	}
}

// divide exchanges the ranks' speeds and sets the bounds.
func (r *Run) divide(total int) error {
	b := &r.shares
	pace := make([]float32, r.World) // seconds a sequence
	pace[r.Rank] = float32(b.busy.Seconds() / float64(max(b.done, 1)))
	b.busy, b.done, b.steps = 0, 0, 0
	r.sync.Reduce(-5, ring.Buffer{Data: pace})
	if err := r.sync.Wait(); err != nil {
		return err
	}
	now := b.bounds
	if len(now) != r.World+1 {
		now = make([]int, r.World+1)
		for k := range now {
			now[k] = k * total / r.World
		}
	}
	next := divide(total, pace)
	if slowest(next, pace) < slowest(now, pace)*(1-balanceGain) {
		b.bounds = next
	}
	return nil
}

// divide gives each rank its share of total sequences so that the slowest ends as
// early as it can: sequences go one by one to the rank that would end first. Each
// rank keeps at least one where there are enough, so that its speed stays known.
func divide(total int, pace []float32) []int {
	n := make([]int, len(pace))
	left := total
	for k := range n {
		if left > 0 {
			n[k]++
			left--
		}
	}
	for ; left > 0; left-- {
		best := 0
		for k := range n {
			if float64(n[k]+1)*float64(pace[k]) < float64(n[best]+1)*float64(pace[best]) {
				best = k
			}
		}
		n[best]++
	}
	bounds := make([]int, len(n)+1)
	for k := range n {
		bounds[k+1] = bounds[k] + n[k]
	}
	return bounds
}

// slowest is the longest time that a rank needs for its part, seconds.
func slowest(bounds []int, pace []float32) float64 {
	t := 0.0
	for k, p := range pace {
		t = max(t, float64(bounds[k+1]-bounds[k])*float64(p))
	}
	return t
}
