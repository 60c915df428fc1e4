package actors

import (
	"slices"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// How a running task takes workers in: once it has a speed, its ring is formed anew
// with them at its next step, they get the state from a peer, and the speed before and
// after says whether they stay. One group of newcomers at a time is on trial.

const (
	growthSettles = 2    // reports that are still of the change
	growthSamples = 7    // reports whose median is a speed
	growthPays    = 1.03 // of the speed before
)

// growth is a Trial's, whose mailbox owns it.
type growth struct {
	rates   []float64    // tokens a second, as reported last, at most growthSamples
	settle  int          // reports to come that are not counted
	before  float64      // the speed without the newcomers; 0 while none are on trial
	came    []*actor.PID // the newcomers
	offered []*actor.PID // those that come next
}

// changed forgets the speed: the ring is another one.
func (g *growth) changed() {
	g.rates, g.settle, g.before, g.came = nil, growthSettles, 0, nil
}

// rate is the median of what was reported, 0 while too little was.
func (g *growth) rate() float64 {
	if len(g.rates) < growthSamples {
		return 0
	}
	s := slices.Sorted(slices.Values(g.rates))
	return s[len(s)/2]
}

// grow hears of workers that the task may have.
func (t *Trial) grow(ctx actor.Context, workers []*actor.PID) {
	t.offered = append(t.offered, workers...)
	t.take(ctx)
}

// take takes in those that are offered, once there is a speed to compare with.
func (t *Trial) take(ctx actor.Context) {
	if len(t.offered) == 0 || t.before > 0 || t.rate() == 0 || !t.whole() {
		return
	}
	before, came := t.rate(), t.offered
	t.offered = nil
	for _, w := range came {
		ctx.Watch(w)
	}
	t.again(ctx, append(slices.Clone(t.workers), came...), "the ring takes workers in")
	t.before, t.came = before, came
}

// whole tells whether all ranks are at work.
func (t *Trial) whole() bool { return t.err == nil && t.left == len(t.workers) }

// again forms the ring anew with other workers: those that were in it go on where they
// are.
func (t *Trial) again(ctx actor.Context, workers []*actor.PID, why string) {
	if t.group != nil {
		t.group.Abort(&ring.LostError{Why: why})
	}
	t.workers = workers
	t.begin(ctx, t.epoch, -1)
	t.changed()
}

// measured counts a report, and lets newcomers go that do not pay.
func (t *Trial) measured(ctx actor.Context, m train.StepMetrics) {
	if m.PerSecond <= 0 {
		return // a score
	}
	if t.settle > 0 {
		t.settle--
		return
	}
	t.rates = append(t.rates, m.PerSecond)
	if len(t.rates) > growthSamples {
		t.rates = slices.Delete(t.rates, 0, 1)
	}
	now := t.rate()
	if now == 0 {
		return
	}
	if t.before > 0 {
		before, came := t.before, t.came
		t.before, t.came = 0, nil
		if now < growthPays*before && t.whole() {
			t.giveBack(ctx, &Returned{Seq: t.seq, Workers: came, With: now, Without: before})
			return
		}
	}
	t.take(ctx)
}

// giveBack lets newcomers go.
func (t *Trial) giveBack(ctx actor.Context, m *Returned) {
	old, came := t.epoch, m.Workers
	t.again(ctx, slices.DeleteFunc(slices.Clone(t.workers), func(w *actor.PID) bool { return slices.ContainsFunc(came, w.Equal) }), "the ring lets workers go that it is no faster with")
	for _, w := range came {
		ctx.Unwatch(w)
		ctx.Send(w, &Release{Epoch: old})
	}
	ctx.Send(ctx.Parent(), m)
}
