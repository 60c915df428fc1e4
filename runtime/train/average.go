package train

import (
	"fmt"
	"math"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// average is the moving average of a run's parameters (Izmailov et al. 2018, Karras et
// al. 2024). Its window grows with the run, so that it forgets the beginning whatever the
// run's length: after n additions one of age a counts as (1 − a/n)^averageSharpness.
type average struct {
	params func() []float32 // the model's
	mean   []float32
	n      [1]float32
}

// Constants of the average.
const (
	averageEvery     = 8  // steps between additions: they take a thousandth of the time
	averageSharpness = 16 // the window is about a seventeenth of the run
	averagePrefix    = "average."
)

// hostParams is a model whose parameters are in this process's memory.
type hostParams interface{ Params() []float32 }

// newAverage averages a model, nil where its parameters would have to be fetched.
func newAverage(m engine.Model) *average {
	h, ok := m.(hostParams)
	if !ok {
		return nil
	}
	return &average{params: h.Params, mean: make([]float32, len(h.Params()))}
}

// add takes the parameters behind a step in.
func (a *average) add(step int) {
	if a == nil || step%averageEvery != 0 {
		return
	}
	a.n[0]++
	keep := float32(math.Pow(1-1/float64(a.n[0]), averageSharpness+1))
	for i, p := range a.params() {
		a.mean[i] = p + keep*(a.mean[i]-p)
	}
}

// state is what a checkpoint holds of it.
func (a *average) state() engine.StateDict {
	if a == nil {
		return nil
	}
	return engine.StateDict{
		{Name: averagePrefix + "parameters", Shape: []int{len(a.mean)}, Data: a.mean},
		{Name: averagePrefix + "count", Shape: []int{1}, Data: a.n[:]},
	}
}

// load takes its own of a checkpoint and returns the rest. One that has none begins anew.
func (a *average) load(s engine.StateDict) (engine.StateDict, error) {
	var rest engine.StateDict
	given := map[string][]float32{}
	for _, t := range s {
		if strings.HasPrefix(t.Name, averagePrefix) {
			given[t.Name] = t.Data
		} else {
			rest = append(rest, t)
		}
	}
	if a == nil || len(given) == 0 {
		return rest, nil
	}
	for _, t := range a.state() {
		if len(given[t.Name]) != len(t.Data) {
			return nil, fmt.Errorf("tensor %s has %d values, want %d", t.Name, len(given[t.Name]), len(t.Data))
		}
		copy(t.Data, given[t.Name])
	}
	return rest, nil
}

// Comparison is how a model compares with the one in whose place it would stand.
type Comparison struct {
	Bits    float64 `json:"bits_per_byte" msgpack:"bits_per_byte"` // of the model
	Against float64 `json:"against" msgpack:"against"`             // of the other
	Noise   float64 `json:"noise" msgpack:"noise"`                 // of the difference: its standard error
	Taken   bool    `json:"taken" msgpack:"taken"`                 // it is better by twice the noise, and takes the place
}

// averagingTokens bounds what either is scored on.
const averagingTokens = 50_000

// contest is held for the place of a final training's model, what is in best. Rank 0
// alone holds it, after the last step.
type contest struct {
	task   Task
	run    *Run
	state  State
	params engine.StateDict // of the model
	nll    []float64        // its scores on windows of the validation part
	bytes  int64            // of which
}

func newContest(t Task, r *Run) (*contest, error) {
	c := &contest{task: t, run: r}
	var err error
	if c.params, c.state, err = LoadCheckpoint(t.best()); err != nil {
		return nil, err
	}
	var s Score
	c.nll, s, err = windows(r, c.params)
	c.bytes = s.Bytes
	return c, err
}

// enter scores other parameters on the same windows, and has them replace the model where
// they are better by more than noise. It returns what does not have the place then.
func (c *contest) enter(params engine.StateDict) (out Comparison, rest engine.StateDict, err error) {
	nll, _, err := windows(c.run, params)
	if err != nil {
		return out, nil, err
	}
	if out = compare(nll, c.nll, c.bytes); !out.Taken {
		return out, params, nil
	}
	rest, c.params, c.nll, c.state.BestBits = c.params, params, nll, out.Bits
	return out, rest, SaveCheckpoint(c.task.best(), params, c.state)
}

// parameters are the average's.
func (a *average) parameters(t Task) engine.StateDict {
	layout, _ := t.Config.Arch.Layout()
	return engine.Parameters(layout, a.mean)
}

// windows scores parameters on a sample, and on each batch of it.
func windows(r *Run, params engine.StateDict) ([]float64, Score, error) {
	if err := r.Model.Load(params); err != nil {
		return nil, Score{}, err
	}
	t := r.Config.Arch.Context
	n := int(min(averagingTokens, r.Valid.Tokens())) / t
	rec := recorder{Evaluator: r.Model}
	s, err := Sample(&rec, r.Valid, t, min(r.microBatch(), max(1, n/leastWindows)), averagingTokens, r.ByteLen, Share{})
	return rec.nll, s, err
}

// leastWindows are batches of a comparison, as far as the text has them.
const leastWindows = 16

// recorder notes what each batch scores.
type recorder struct {
	Evaluator
	nll []float64
}

func (r *recorder) Eval(b engine.Batch) (float64, int, error) {
	nll, n, err := r.Evaluator.Eval(b)
	r.nll = append(r.nll, nll)
	return nll, n, err
}

// compare holds the scores of one model against those of another on the same batches of a
// text: the standard error is that of the differences' sum. Fewer than four batches tell
// nothing.
func compare(a, b []float64, bytes int64) Comparison {
	var mine, other, squares float64
	for i := range a {
		mine, other = mine+a[i], other+b[i]
	}
	n := float64(len(a))
	for i := range a {
		d := b[i] - a[i] - (other-mine)/n
		squares += d * d
	}
	noise, bits := math.Sqrt(squares*n/max(n-1, 1)), math.Ln2*float64(max(bytes, 1))
	return Comparison{Bits: mine / bits, Against: other / bits, Noise: noise / bits, Taken: n >= 4 && other-mine > 2*noise}
}
