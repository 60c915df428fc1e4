package train

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"testing"
)

// The average forgets the beginning, and is what it is defined as.
func TestAverage(t *testing.T) {
	p := []float32{0}
	a := &average{params: func() []float32 { return p }, mean: make([]float32, 1)}
	for step := 1; step <= 8*200; step++ {
		p[0] = float32(step)
		a.add(step)
	}
	// A window of a seventeenth: the mean lies about an eighteenth of the run behind.
	if a.n[0] != 200 || math.Abs(float64(a.mean[0])-1600*17.0/18) > 8 {
		t.Errorf("%v additions of 1 … 1600, mean %v", a.n[0], a.mean[0])
	}
	b := &average{mean: make([]float32, 1)}
	if rest, err := b.load(a.state()); err != nil || len(rest) > 0 || b.mean[0] != a.mean[0] || b.n != a.n {
		t.Errorf("loaded %+v, left %v, %v", b, rest, err)
	}
	if _, err := (&average{mean: make([]float32, 2)}).load(a.state()); err == nil {
		t.Error("an average of another size was loaded")
	}
}

func TestCompare(t *testing.T) {
	for _, tc := range []struct {
		a, b []float64
		want bool
	}{
		{[]float64{1, 1, 1, 1}, []float64{2, 2.1, 1.9, 2}, true},
		{[]float64{2, 2.1, 1.9, 2}, []float64{1, 1, 1, 1}, false},
		{[]float64{1, 1, 1, 1}, []float64{1, 1, 1, 1}, false},
		{[]float64{1, 1, 1, 1}, []float64{3, -1, 2, 1}, false}, // noise
		{[]float64{1, 1, 1}, []float64{2, 2.1, 1.9}, false},    // too few
		{nil, nil, false},
	} {
		if got := compare(tc.a, tc.b, 1); got.Taken != tc.want {
			t.Errorf("%v against %v: %+v", tc.a, tc.b, got)
		}
	}
}

// Where the rate stays up the average is better, and becomes the model; a run that was cut
// off comes to the same average.
func TestAveragingIsTakenAndExact(t *testing.T) {
	dir, tok := corpora(t, 3)
	task := tinyTask(dir, tok)
	task.Final, task.Average = true, true
	task.Segment = Segment{Steps: 160, DecayFrom: 160}
	task.Config.LR, task.Config.BatchTokens, task.Config.Dropout = 1e-2, 64, 0
	rep, err := Execute(t.Context(), task, env())
	if err != nil {
		t.Fatal(err)
	}
	if a := rep.Averaging; a == nil || !a.Taken || a.Bits >= a.Against || rep.Bits != a.Bits {
		t.Fatalf("%+v, averaging %+v", rep, rep.Averaging)
	}
	if _, st, err := LoadCheckpoint(BestDir(task.Dir)); err != nil || st.BestBits != rep.Averaging.Bits {
		t.Errorf("the best checkpoint has %v bits: %v", st.BestBits, err)
	}
	cut := task
	cut.Dir, cut.CheckpointEvery = filepath.Join(dir, "cut"), 1
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	e := env()
	e.Metrics = func(m StepMetrics) {
		if m.Step >= 93 {
			cancel(stop)
		}
	}
	if _, err := Execute(ctx, cut, e); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	again, err := Execute(t.Context(), cut, env())
	if err != nil {
		t.Fatal(err)
	}
	if *again.Averaging != *rep.Averaging || checkpointBytes(t, BestDir(cut.Dir)) != checkpointBytes(t, BestDir(task.Dir)) {
		t.Errorf("cut off and gone on: %+v, uninterrupted %+v", again.Averaging, rep.Averaging)
	}

	// With the rate gone to zero its own parameters are kept, or are at least no worse.
	calm := task
	calm.Dir, calm.Segment.DecayFrom, calm.Config.LR = filepath.Join(dir, "calm"), 20, 3e-3
	if rep, err = Execute(t.Context(), calm, env()); err != nil || rep.Averaging.Taken && rep.Averaging.Bits >= rep.Averaging.Against {
		t.Errorf("%+v, %v", rep.Averaging, err)
	}
}
