package train

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type examples []data.Example

func (e *examples) Next() (data.Example, error) {
	if len(*e) == 0 {
		return data.Example{}, io.EOF
	}
	x := (*e)[0]
	*e = (*e)[1:]
	return x, nil
}

// rhyme is a text with something to learn.
func rhyme(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d bottles hang on the wall, and if %d bottle falls then %d are left. ", i%10, i%3, (i*7)%10)
	}
	return b.String()
}

func corpora(t testing.TB, docs int) (dir string, tok *token.Tokenizer) {
	t.Helper()
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: 320, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	tr.Add([]byte(rhyme(200)))
	if tok, err = tr.Train(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, part := range []string{"train", "valid"} {
		var ex examples
		for i := range docs {
			ex = append(ex, data.Example{Segments: []data.Segment{{Text: rhyme(400/docs + i), Scored: true}}})
		}
		if err := Tokenize(t.Context(), &ex, tok, filepath.Join(dir, part), true); err != nil {
			t.Fatal(err)
		}
	}
	return dir, tok
}

func tinyTask(dir string, tok *token.Tokenizer) Task {
	a := glm.Arch{Vocab: tok.VocabSize(), Dim: 64, Layers: 2, Heads: 2, KVHeads: 1, FFN: 64, Context: 32, Tied: true}.WithDefaults()
	return Task{
		Trial: "t", Dir: filepath.Join(dir, "t"), TrainPath: filepath.Join(dir, "train"), ValidPath: filepath.Join(dir, "valid"),
		ByteLens: ByteLengths(tok), Threads: 1, EvalTokens: 2000,
		Config:  Config{Arch: a, BatchTokens: 256, Optimizer: engine.AdamW, LR: 3e-3, WeightDecay: 0.1, Dropout: 0.1, Warmup: 5, Schedule: "wsd", Seed: 3},
		Segment: Segment{Steps: 40, DecayFrom: 30},
	}
}

func newTestModel(c Config, threads, world int) (engine.Model, error) {
	return native.New(c.Arch, native.Options{Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, Optimizer: c.Optimizer, Seed: c.Seed, Recompute: c.Recompute})
}

// fakeClock moves a second a call: every checkpoint that may be due is.
func fakeClock() func() time.Duration {
	var d time.Duration
	return func() time.Duration { d += time.Second; return d }
}

func env() Env { return Env{World: 1, NewModel: newTestModel, Clock: fakeClock()} }

func checkpointBytes(t *testing.T, dir string) string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dir, "step-*.safetensors"))
	if err != nil || len(m) != 1 {
		t.Fatalf("%v %v", m, err)
	}
	b, err := os.ReadFile(m[0])
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(m[0]) + string(b)
}

func TestLearns(t *testing.T) {
	dir, tok := corpora(t, 1)
	task := tinyTask(dir, tok)
	rep, err := Execute(t.Context(), task, env())
	if err != nil {
		t.Fatal(err)
	}
	if rep.Bits > 2.5 || rep.State.Step != 40 || rep.State.Tokens != 40*256 {
		t.Fatalf("%+v", rep)
	}
}

// A run that is cut off after any step and goes on ends where an undisturbed
// one ends, to the bit.
func TestResumeIsExact(t *testing.T) {
	dir, tok := corpora(t, 3)
	whole := tinyTask(dir, tok)
	want, err := Execute(t.Context(), whole, env())
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{1, 7, 29, 30, 35} {
		cut := tinyTask(dir, tok)
		cut.Dir = filepath.Join(dir, fmt.Sprint("cut", at))
		cut.CheckpointEvery = time.Nanosecond
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("stop")
		e := env()
		e.Metrics = func(m StepMetrics) {
			if m.Step >= at {
				cancel(stop)
			}
		}
		if _, err := Execute(ctx, cut, e); !errors.Is(err, stop) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		got, err := Execute(t.Context(), cut, env())
		if err != nil {
			t.Fatal(err)
		}
		if got.Bits != want.Bits || got.State.Step != want.State.Step || got.State.Tokens != want.State.Tokens {
			t.Fatalf("cut at %d: %+v, want %+v", at, got, want)
		}
		if checkpointBytes(t, cut.checkpoint()) != checkpointBytes(t, whole.checkpoint()) {
			t.Fatalf("cut at %d: the checkpoints differ", at)
		}
	}
}

// The next rung goes on from before the rate fell.
func TestPromotionContinues(t *testing.T) {
	dir, tok := corpora(t, 1)
	first := tinyTask(dir, tok)
	if _, err := Execute(t.Context(), first, env()); err != nil {
		t.Fatal(err)
	}
	st, err := CheckpointState(first.checkpoint())
	if err != nil || st.Step != 30 {
		t.Fatalf("%+v, %v", st, err)
	}
	next := first
	next.Segment = Segment{Steps: 80, DecayFrom: 60}
	var firstStep int
	e := env()
	e.Metrics = func(m StepMetrics) {
		if firstStep == 0 {
			firstStep = m.Step
		}
	}
	rep, err := Execute(t.Context(), next, e)
	if err != nil || rep.State.Step != 80 || firstStep != 31 {
		t.Fatalf("%+v, %v, first step %d", rep, err, firstStep)
	}
}

func ranks(t *testing.T, task Task, world int) ([]Report, []error) {
	t.Helper()
	g := ring.NewGroup(world, 1)
	reps, errs := make([]Report, world), make([]error, world)
	var wg sync.WaitGroup
	for r := range world {
		wg.Add(1)
		go func() {
			defer wg.Done()
			e := Env{Rank: r, World: world, NewModel: newTestModel, Clock: fakeClock()}
			if world > 1 {
				e.Ring = g.Rank(r)
			}
			reps[r], errs[r] = Execute(t.Context(), task, e)
		}()
	}
	wg.Wait()
	return reps, errs
}

func TestRanksTrainAsOne(t *testing.T) {
	dir, tok := corpora(t, 1)
	var bits []float64
	for _, world := range []int{1, 2, 3} {
		task := tinyTask(dir, tok)
		task.Config.Dropout = 0
		task.Dir = filepath.Join(dir, fmt.Sprint("world", world))
		reps, errs := ranks(t, task, world)
		for r, err := range errs {
			if err != nil {
				t.Fatalf("world %d rank %d: %v", world, r, err)
			}
			if reps[r].Bits != reps[0].Bits {
				t.Fatalf("world %d: rank %d scored %v, rank 0 %v", world, r, reps[r].Bits, reps[0].Bits)
			}
		}
		bits = append(bits, reps[0].Bits)
	}
	for _, b := range bits[1:] {
		if math.Abs(b-bits[0]) > 2e-3 {
			t.Fatalf("bits per byte by world size: %v", bits)
		}
	}
}

func TestDivergenceIsNamed(t *testing.T) {
	dir, tok := corpora(t, 1)
	task := tinyTask(dir, tok)
	task.Config.LR, task.Config.Warmup, task.Segment.Steps = 1e30, 0, 30
	if _, err := Execute(t.Context(), task, env()); !errors.Is(err, ErrDiverged) {
		t.Fatalf("got %v", err)
	}
}

func TestMemoryIsRefusedByEstimate(t *testing.T) {
	dir, tok := corpora(t, 1)
	task := tinyTask(dir, tok)
	task.MaxBytes = 1000
	if _, err := Execute(t.Context(), task, env()); !errors.Is(err, ErrMemory) {
		t.Fatalf("got %v", err)
	}
}

// TestRecomputationBeforeRefusal: what does not fit with all activations trains
// with each layer's input alone, to the same bits.
func TestRecomputationBeforeRefusal(t *testing.T) {
	dir, tok := corpora(t, 1)
	task := tinyTask(dir, tok)
	if _, err := Execute(t.Context(), task, env()); err != nil {
		t.Fatal(err)
	}
	want := checkpointBytes(t, task.checkpoint())
	task.Dir += "-tight"
	task.MaxBytes = task.Config.Bytes(1, task.Threads) - 1
	e, recompute := env(), false
	e.NewModel = func(c Config, threads, world int) (engine.Model, error) {
		recompute = c.Recompute
		return newTestModel(c, threads, world)
	}
	if _, err := Execute(t.Context(), task, e); err != nil || !recompute {
		t.Fatalf("recomputation %v, %v", recompute, err)
	}
	if checkpointBytes(t, task.checkpoint()) != want {
		t.Error("recomputation changed the bits")
	}
}

func TestNaNInACheckpointIsRefused(t *testing.T) {
	dir, tok := corpora(t, 1)
	task := tinyTask(dir, tok)
	if _, err := Execute(t.Context(), task, env()); err != nil {
		t.Fatal(err)
	}
	sd, st, err := LoadCheckpoint(task.checkpoint())
	if err != nil {
		t.Fatal(err)
	}
	sd[len(sd)-1].Data[0] = float32(math.NaN())
	if err := SaveCheckpoint(task.checkpoint(), sd, st); err != nil {
		t.Fatal(err)
	}
	if _, err := Execute(t.Context(), task, env()); err == nil || !strings.Contains(err.Error(), sd[len(sd)-1].Name) {
		t.Fatalf("got %v, want it to name %s", err, sd[len(sd)-1].Name)
	}
}

// Every token but the windows' rest is a target once an epoch.
func TestAnEpochSeesEachTokenOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		w, err := CreateCorpus(filepath.Join(dir, "c"))
		if err != nil {
			rt.Fatal(err)
		}
		n := int32(0)
		for _, length := range rapid.SliceOfN(rapid.IntRange(1, 60), 1, 12).Draw(rt, "docs") {
			w.Begin()
			ids := make([]int32, length)
			for i := range ids {
				ids[i] = n
				n++
			}
			if err := w.Add(ids, true, length); err != nil {
				rt.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			rt.Fatal(err)
		}
		c, err := OpenCorpus(filepath.Join(dir, "c"))
		if err != nil {
			rt.Fatal(err)
		}
		defer c.Close()
		T := rapid.IntRange(1, 20).Draw(rt, "T")
		b := NewBatches(c, T, 5)
		seen := map[int32]int{}
		in, out := make([]int32, T), make([]int32, T)
		for s := range b.Windows() {
			b.Sequence(s, in, out)
			for _, id := range out {
				if id >= 0 {
					if seen[id]++; seen[id] > 1 {
						rt.Fatalf("token %d twice", id)
					}
				}
			}
		}
		if int(n) > T && len(seen) != b.Windows()*T {
			rt.Fatalf("%d of %d tokens seen in %d windows of %d", len(seen), n, b.Windows(), T)
		}
	})
}

// counting scores nothing and counts how often each target is asked for.
type counting struct{ seen map[int32]int }

func (c *counting) Eval(b engine.Batch) (float64, int, error) {
	n := 0
	for _, id := range b.Targets {
		if id != engine.Ignore {
			c.seen[id]++
			n++
		}
	}
	return float64(n), n, nil
}

func TestSlidingScoresEachTokenOnce(t *testing.T) {
	for _, n := range []int{1, 2, 7, 8, 9, 31, 32, 33, 100} {
		for _, context := range []int{2, 7, 8, 16} {
			path := filepath.Join(t.TempDir(), "c")
			w, err := CreateCorpus(path)
			if err != nil {
				t.Fatal(err)
			}
			w.Begin()
			w.Add([]int32{1 << 20}, false, 0) // BOS
			for i := range n {
				w.Add([]int32{int32(i)}, true, 1)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			c, err := OpenCorpus(path)
			if err != nil {
				t.Fatal(err)
			}
			m := &counting{map[int32]int{}}
			s, err := Sliding(t.Context(), m, c, context, 3, Share{})
			if err != nil {
				t.Fatal(err)
			}
			if s.Tokens != int64(n) || len(m.seen) != n || s.Bytes != int64(n) {
				t.Fatalf("n %d context %d: %d tokens, %d distinct, %d bytes", n, context, s.Tokens, len(m.seen), s.Bytes)
			}
			c.Close()
		}
	}
}

func FuzzOpenCorpus(f *testing.F) {
	f.Add([]byte("AGLMTOK\x01" + strings.Repeat("\x00", 24)))
	f.Add([]byte("AGLMTOK\x01\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "c")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := OpenCorpus(path)
		if err != nil {
			return
		}
		defer c.Close()
		if c.Docs() > 0 && c.Tokens() > 3 {
			NewBatches(c, 2, 1).Sequence(0, make([]int32, 2), make([]int32, 2))
		}
	})
}
