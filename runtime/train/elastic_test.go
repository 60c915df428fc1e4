package train

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// meetings hands the ranks of a test their places in ring after ring.
type meetings struct {
	mu     sync.Mutex
	turned *sync.Cond
	epoch  uint64
	group  *ring.Group
	place  []int // of each member in the present ring; −1: none
	world  int
}

func newMeetings(members int) *meetings {
	m := &meetings{place: make([]int, members), world: members}
	m.turned = sync.NewCond(&m.mu)
	for i := range m.place {
		m.place[i] = i
	}
	m.turn(nil)
	return m
}

// turn begins the next ring: without the members for which gone is true.
func (m *meetings) turn(gone func(member int) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.group
	m.world = 0
	for i := range m.place {
		m.place[i] = -1
		if gone == nil || !gone(i) {
			m.place[i] = m.world
			m.world++
		}
	}
	m.epoch++
	m.group = ring.NewGroup(m.world, m.epoch)
	if old != nil {
		old.Abort(&ring.LostError{Rank: 0, Why: "by the test"})
	}
	m.turned.Broadcast()
}

// at waits for a ring later than the given epoch.
func (m *meetings) at(member int, after uint64) (Place, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.epoch <= after {
		m.turned.Wait()
	}
	if m.place[member] < 0 {
		return Place{}, m.epoch, errors.New("no longer a member")
	}
	p := Place{Rank: m.place[member], World: m.world}
	if p.World > 1 {
		p.Ring = m.group.Rank(p.Rank)
	}
	return p, m.epoch, nil
}

// run executes a task as a member until it ends or dies.
func (m *meetings) run(ctx context.Context, member int, t Task, clock func() time.Duration, step func(StepMetrics)) (Report, error) {
	p, epoch, err := m.at(member, 0)
	if err != nil {
		return Report{}, err
	}
	e := Env{Rank: p.Rank, World: p.World, Ring: p.Ring, NewModel: newTestModel, Clock: clock, Metrics: step}
	e.Rejoin = func(context.Context, error) (p Place, err error) {
		p, epoch, err = m.at(member, epoch)
		return p, err
	}
	e.Regroup = func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.epoch > epoch
	}
	return Execute(ctx, t, e)
}

// A single rank is joined by another in its middle, and both end with one model.
func TestSingleRankIsJoined(t *testing.T) {
	dir, tok := corpora(t, 3)
	for _, at := range []int{3, 40} {
		task := tinyTask(dir, tok)
		task.Dir = filepath.Join(dir, fmt.Sprint("joined", at))
		m := newMeetings(2)
		m.turn(func(member int) bool { return member == 1 })
		var once sync.Once
		var wg sync.WaitGroup
		var reps [2]Report
		var errs [2]error
		wg.Go(func() {
			reps[0], errs[0] = m.run(t.Context(), 0, task, fakeClock(), func(s StepMetrics) {
				if s.Step < at {
					return
				}
				once.Do(func() {
					m.turn(nil)
					wg.Go(func() { reps[1], errs[1] = m.run(t.Context(), 1, task, fakeClock(), nil) })
				})
			})
		})
		wg.Wait()
		if errs[0] != nil || errs[1] != nil {
			t.Fatalf("at step %d: %v, %v", at, errs[0], errs[1])
		}
		if reps[0].State.Step != reps[1].State.Step || reps[0].Bits != reps[1].Bits || reps[0].State.Step == 0 {
			t.Errorf("at step %d: %+v and %+v", at, reps[0], reps[1])
		}
	}
}

// A rank is lost after any step and another takes its place with what is on the
// disk: nothing, or an older checkpoint. It gets the state from a peer, and the
// training ends as an undisturbed one, to the bit.
func TestNewcomerGetsTheStateFromAPeer(t *testing.T) {
	dir, tok := corpora(t, 3)
	const world = 3
	train := func(name string, at, lost int) (Report, string, string) {
		task := tinyTask(dir, tok)
		task.Dir = filepath.Join(dir, name)
		m := newMeetings(world)
		reps, errs := make([]Report, world), make([]error, world)
		var wg sync.WaitGroup
		for i := range world {
			wg.Go(func() {
				ctx, die := context.WithCancelCause(t.Context())
				dead := errors.New("dead")
				var once sync.Once
				reps[i], errs[i] = m.run(ctx, i, task, fakeClock(), func(s StepMetrics) {
					if s.Step >= at && s.Bits == 0 && lost >= 0 {
						once.Do(func() { die(dead) })
					}
				})
				if !errors.Is(errs[i], dead) {
					return
				}
				// Rank 0 died, having told: it, or a rank in its place, starts anew.
				if lost > 0 && at < 30 { // later it is what others go on from
					os.RemoveAll(filepath.Join(task.Dir, "checkpoint"))
				}
				m.turn(nil)
				reps[i], errs[i] = m.run(t.Context(), i, task, fakeClock(), nil)
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := os.ReadFile(filepath.Join(task.Dir, "metrics.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		return reps[0], checkpointBytes(t, filepath.Join(task.Dir, "checkpoint")), string(b)
	}
	want, wantBytes, _ := train("whole", 0, -1)
	for _, at := range []int{1, 12, 29, 30, 31, 39} {
		for _, lost := range []int{0, 1} {
			got, bytes, metrics := train(fmt.Sprintf("lost-%d-%d", at, lost), at, lost)
			if got.Bits != want.Bits || got.State.Step != want.State.Step || got.State.Tokens != want.State.Tokens {
				t.Errorf("lost at step %d: %+v, undisturbed %+v", at, got, want)
			}
			if bytes != wantBytes {
				t.Errorf("lost at step %d: the checkpoint differs", at)
			}
			if n := strings.Count(metrics, `"bits_per_byte"`); n != 1 {
				t.Errorf("lost at step %d: %d scores in metrics.jsonl", at, n)
			}
		}
	}
}

// Those that are left go on with the recipe's global batch, numbered anew, and
// the first of them writes the files; the last one needs no ring.
func TestSurvivorsGoOn(t *testing.T) {
	dir, tok := corpora(t, 3)
	task := tinyTask(dir, tok)
	const world = 3
	m := newMeetings(world)
	died := errors.New("died")
	var alive sync.Map
	reps, errs := make([]Report, world), make([]error, world)
	var wg sync.WaitGroup
	for i := range world {
		wg.Go(func() {
			ctx, die := context.WithCancelCause(t.Context())
			reps[i], errs[i] = m.run(ctx, i, task, fakeClock(), func(s StepMetrics) {
				if i < world-1 && s.Step >= 10*(i+1) {
					die(died)
				}
			})
			if errors.Is(errs[i], died) {
				alive.Store(i, false)
				m.turn(func(j int) bool { _, dead := alive.Load(j); return dead })
			}
		})
	}
	wg.Wait()
	last := world - 1
	if errs[last] != nil || reps[last].State.Step != 40 || reps[last].State.Tokens != 40*256 || reps[last].Bits > 2.5 {
		t.Fatalf("%v %+v", errs, reps[last])
	}
	for i := range last {
		if !errors.Is(errs[i], died) {
			t.Errorf("rank %d: %v", i, errs[i])
		}
	}
	if _, err := CheckpointState(filepath.Join(task.Dir, "checkpoint")); err != nil {
		t.Error(err)
	}
}

// slowModel makes a clock that its sequences move.
type slowModel struct {
	engine.Model
	clock *time.Duration
	pace  time.Duration
}

func (s slowModel) Backward(b engine.Batch, sync engine.GradientSync) (float64, error) {
	*s.clock += time.Duration(b.B) * s.pace
	return s.Model.Backward(b, sync)
}

// A device three times as slow gets a third of the sequences; the loss is that of
// the same global batch.
func TestBalance(t *testing.T) {
	dir, tok := corpora(t, 3)
	score := func(name string, balanced bool) (Report, []time.Duration) {
		task := tinyTask(dir, tok)
		task.Dir, task.Balance = filepath.Join(dir, name), balanced
		g := ring.NewGroup(2, 1)
		clocks := make([]time.Duration, 2)
		reps, errs := make([]Report, 2), make([]error, 2)
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() {
				e := Env{Rank: i, World: 2, Ring: g.Rank(i), Clock: func() time.Duration { return clocks[i] }}
				e.NewModel = func(c Config, threads, world int) (engine.Model, error) {
					m, err := newTestModel(c, threads, world)
					return slowModel{m, &clocks[i], time.Duration(1+2*i) * time.Second}, err
				}
				reps[i], errs[i] = Execute(t.Context(), task, e)
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		return reps[0], clocks
	}
	even, before := score("even", false)
	got, after := score("balanced", true)
	// 40 steps of 8 sequences: 4×3 s for the slow rank, or 2×3 s beside 6×1 s.
	if before[1] != 40*12*time.Second || after[1] > 300*time.Second || after[0] > 300*time.Second {
		t.Errorf("computed for %v, balanced %v", before, after)
	}
	if d := got.Bits - even.Bits; d > 0.1 || d < -0.1 {
		t.Errorf("bits per byte %g, of equal parts %g", got.Bits, even.Bits)
	}
}

func TestDivide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(0, 64).Draw(t, "total")
		pace := rapid.SliceOfN(rapid.Float32Range(0, 4), 1, 8).Draw(t, "pace")
		b := divide(total, pace)
		if b[0] != 0 || b[len(b)-1] != total {
			t.Fatalf("%v does not divide %d", b, total)
		}
		for k := range pace {
			if n := b[k+1] - b[k]; n < 0 || n == 0 && total >= len(pace) {
				t.Fatalf("%v leaves rank %d %d sequences", b, k, n)
			}
		}
		even := make([]int, len(b))
		for k := range even {
			even[k] = k * total / len(pace)
		}
		if total >= len(pace) && slowest(b, pace) > slowest(even, pace)*(1+1e-6) {
			t.Fatalf("%v is slower than equal parts at %v", b, pace)
		}
	})
}
