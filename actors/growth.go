package actors

import (
	"slices"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// How a running task takes workers in: its ring is formed anew with them at its next
// step, they get the state from a peer, and the speed before and after says whether
// they stay.

const (
	growthSettles = 2    // reports that are still of the change
	growthSamples = 7    // reports whose median is a speed
	growthPays    = 1.03 // of the speed before
)

// growth is a Trial's, whose mailbox owns it.
type growth struct {
	rates  []float64    // tokens a second, as reported last, at most growthSamples
	before float64      // the speed without the newcomers; 0 while none are on trial
	came   []*actor.PID // the newcomers
	settle int          // reports to come that are not counted
}

// over ends the trial of newcomers: the ring has changed for another reason.
func (g *growth) over() { *g = growth{} }

// rate is the median of what was reported, 0 while too little was.
func (g *growth) rate() float64 {
	if len(g.rates) < growthSamples {
		return 0
	}
	s := slices.Sorted(slices.Values(g.rates))
	return s[len(s)/2]
}

// grow takes workers in. Those that come while others are on trial, or before there is
// a speed to compare with, stay unmeasured: more devices pay as a rule.
func (t *Trial) grow(ctx actor.Context, workers []*actor.PID) {
	if t.err != nil || t.left < len(t.workers) {
		ctx.Send(ctx.Parent(), &Returned{Seq: t.seq, Workers: workers}) // it is ending
		return
	}
	before := t.rate()
	if t.before > 0 {
		before = 0
	}
	t.growth = growth{before: before, came: workers, settle: growthSettles}
	for _, w := range workers {
		ctx.Watch(w)
	}
	t.again(ctx, append(slices.Clone(t.workers), workers...), "the ring takes workers in")
}

// again forms the ring anew with other workers: those that were in it go on where they
// are.
func (t *Trial) again(ctx actor.Context, workers []*actor.PID, why string) {
	if t.group != nil {
		t.group.Abort(&ring.LostError{Why: why})
	}
	t.workers = workers
	t.begin(ctx, t.epoch, -1)
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
	if t.before == 0 || now == 0 {
		return
	}
	before, came := t.before, t.came
	t.before, t.came = 0, nil
	if now >= growthPays*before || t.err != nil || t.left < len(t.workers) {
		return
	}
	t.growth = growth{settle: growthSettles}
	old := t.epoch
	t.again(ctx, slices.DeleteFunc(slices.Clone(t.workers), func(w *actor.PID) bool { return slices.ContainsFunc(came, w.Equal) }), "the ring lets workers go that it is no faster with")
	for _, w := range came {
		ctx.Unwatch(w)
		ctx.Send(w, &Release{Epoch: old})
	}
	ctx.Send(ctx.Parent(), &Returned{Seq: t.seq, Workers: came})
}
