//go:build gpu && libtorch

package torch

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	_ "github.com/open-autoglm/autoglm/gpu/ring/nccl"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Rings between GPUs, on the stub of NCCL, for which host memory is a GPU's: a model
// on the CPU whose arenas are said to be apart is one on its device.

// needStub builds the stub of NCCL and has the ring use it.
func needStub(t *testing.T) {
	t.Helper()
	stub := filepath.Join(t.TempDir(), "stub.so")
	// Its functions call each other, not those of an NCCL that libtorch brought along.
	args := []string{"-O2", "-shared", "-fPIC", "-pthread", "-Wl,-Bsymbolic", "-o", stub, "../../ring/nccl/testdata/stub.c"}
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatalf("the stub of NCCL is not built (install gcc): %v: %s", err, out)
		}
		t.Skipf("the stub of NCCL is not built (install gcc): %v: %s", err, out)
	}
	t.Setenv("AUTOGLM_NCCL", stub)
	t.Setenv("AUTOGLM_CUDA", stub)
}

// onGPUs forms a ring of ranks that have a GPU each.
func onGPUs(t *testing.T, backend string, world int, epoch uint64) []*ring.Comm {
	t.Helper()
	meet := &ring.Meeting{}
	comms, errs := make([]*ring.Comm, world), make([]error, world)
	var wg sync.WaitGroup
	for r := range world {
		wg.Go(func() {
			comms[r], errs[r] = ring.Form(t.Context(), ring.Config{
				Rank: r, World: world, Epoch: epoch, Backend: backend, Rendezvous: meet, GPU: &ring.GPU{Ordinal: r},
				Timeout: 20 * time.Second, FormTimeout: 20 * time.Second, Suspect: 10 * time.Second,
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, c := range comms {
			wg.Go(func() { _ = c.Close() })
		}
		wg.Wait()
	})
	return comms
}

// counting is a ring as a training hands it to its engine, and counts what comes.
type counting struct {
	*ring.Comm
	device, host int // buckets
}

func (c *counting) TakesDevice() bool { return c.Devices() }

func (c *counting) Reduce(bucket int, b ring.Buffer) {
	if b.Device != 0 {
		c.device++
	} else {
		c.host++
	}
	c.Comm.Reduce(bucket, b)
}

// setApart parts a model's arenas from the host's memory. What is on the host of the
// gradient is no number, as long as nothing is staged there.
func setApart(m *Model) {
	m.apart = true
	for _, a := range []*arena{&m.params, &m.grads, &m.m1, &m.m2} {
		a.host = slices.Clone(a.host)
	}
	for i := range m.grads.host {
		m.grads.host[i] = float32(math.NaN())
	}
}

// onDevice is an arena's memory.
func onDevice(m *Model, a *arena) []float32 {
	return unsafe.Slice((*float32)(lib.AtDataPtr(a.flat)), m.size)
}

// share runs one step's Backward on every rank and waits for the sums.
func share(models []*Model, syncs []*counting, step int) error {
	errs := make([]error, len(models))
	var wg sync.WaitGroup
	for r, m := range models {
		wg.Go(func() {
			b := enginetest.Batch(rand.New(rand.NewPCG(uint64(step), uint64(r))), 2, 32, m.arch.Vocab, true)
			if _, errs[r] = m.Backward(b, syncs[r]); errs[r] == nil {
				errs[r] = syncs[r].Wait()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// outcome is what a training came to: rank 0's sums of the last step, its parameters,
// and the norms.
type outcome struct {
	grads, params []float32
	norms         []float64
}

func trained(t *testing.T, models []*Model, syncs []*counting, steps int) (o outcome) {
	t.Helper()
	h := engine.DefaultHyper()
	for step := range steps {
		if err := share(models, syncs, step); err != nil {
			t.Fatal(err)
		}
		for r, m := range models {
			grads := onDevice(m, &m.grads)
			if m.staged {
				grads = m.grads.host
			}
			if r == 0 {
				o.grads = slices.Clone(grads)
			} else {
				near(t, "sums of rank 1", grads, o.grads, 0)
			}
			norm, err := m.Update(h)
			if err != nil {
				t.Fatal(err)
			}
			o.norms = append(o.norms, norm)
		}
	}
	o.params = slices.Clone(onDevice(models[0], &models[0].params))
	for _, m := range models {
		near(t, "parameters of a rank", onDevice(m, &m.params), o.params, 0)
	}
	return o
}

// several buckets
var wide = glm.Arch{Vocab: 400, Dim: 128, Layers: 2, Heads: 4, KVHeads: 2, FFN: 256, Context: 32}

func replicas(t *testing.T, world int, apart bool) []*Model {
	models := make([]*Model, world)
	for r := range models {
		models[r] = build(t, wide, Options{Device: CPU, MaxBatch: 2, Seed: 9})
		if apart {
			setApart(models[r])
		}
	}
	return models
}

func counted(comms []*ring.Comm) []*counting {
	syncs := make([]*counting, len(comms))
	for r, c := range comms {
		syncs[r] = &counting{Comm: c}
	}
	return syncs
}

func inProcess(world int) []*counting {
	g := ring.NewGroup(world, 1)
	comms := make([]*ring.Comm, world)
	for r := range comms {
		comms[r] = g.Rank(r)
	}
	return counted(comms)
}

// staged tells whether anything of the gradient was ever on the host.
func staged(m *Model) bool {
	return slices.ContainsFunc(m.grads.host, func(x float32) bool { return x == x })
}

// Over a ring between GPUs gradients are summed where they are, and nothing of them
// comes to the host; over any other they are copied there and back. The training is
// the same.
func TestRingsOfGPUs(t *testing.T) {
	needStub(t)
	const steps = 4
	want := trained(t, replicas(t, 2, false), inProcess(2), steps)
	for _, c := range []struct {
		name   string
		syncs  []*counting
		direct bool
	}{
		{"nccl", counted(onGPUs(t, ring.Auto, 2, 1)), true},
		{"nccl inside a host", counted(onGPUs(t, ring.Hierarchical, 2, 1)), true},
		{"in this process", inProcess(2), false},
	} {
		models := replicas(t, 2, true)
		got := trained(t, models, c.syncs, steps)
		near(t, c.name+": gradients", got.grads, want.grads, 1e-6)
		near(t, c.name+": parameters", got.params, want.params, 1e-6)
		for i, n := range want.norms {
			if math.Abs(got.norms[i]-n) > 1e-6*n {
				t.Errorf("%s: norm %d is %g, want %g", c.name, i, got.norms[i], n)
			}
		}
		for r, s := range c.syncs {
			if c.direct && (s.host > 0 || s.device < 2*steps) || !c.direct && (s.device > 0 || s.host < 2*steps) {
				t.Errorf("%s: rank %d handed over %d buckets on its device, %d on the host", c.name, r, s.device, s.host)
			}
			if staged(models[r]) == c.direct {
				t.Errorf("%s: rank %d: gradients on the host: %t", c.name, r, !c.direct)
			}
		}
		t.Logf("%s, %s: %d buckets on the device, %d on the host", c.name, c.syncs[0].Backend(), c.syncs[0].device, c.syncs[0].host)
	}
}

// A step that a lost rank cut off is dropped and done again in the next ring.
func TestRingOfGPUsLosesARank(t *testing.T) {
	needStub(t)
	want := trained(t, replicas(t, 2, false), inProcess(2), 1)
	models := replicas(t, 3, true)
	syncs := counted(onGPUs(t, ring.Auto, 3, 1))
	gone := errors.New("rank 2 has gone")
	lost := make(chan error, 1)
	go func() { lost <- share(models[:2], syncs[:2], 0) }()
	syncs[2].Abort(gone)
	if err := <-lost; err == nil {
		t.Fatal("sums without a rank")
	}
	for _, m := range models[:2] {
		m.ZeroGrad()
	}
	got := trained(t, models[:2], counted(onGPUs(t, ring.Auto, 2, 2)), 1)
	near(t, "gradients", got.grads, want.grads, 1e-6)
	near(t, "parameters", got.params, want.params, 1e-6)
	if staged(models[0]) || staged(models[1]) {
		t.Error("gradients on the host")
	}
}

// leaver is a ring that its rank leaves in the middle of the third step.
type leaver struct{ *counting }

func (l leaver) Commit(step uint64) error {
	if step == 3 {
		return l.Close()
	}
	return l.counting.Commit(step)
}

// A training sums over NCCL as over the ring of one process: the same parameters, and
// nothing of a gradient on the host. Where a rank leaves, the others go on in a new
// ring between their GPUs.
func TestTrainsOverRingsOfGPUs(t *testing.T) {
	needStub(t)
	a := wide.WithDefaults()
	dir := t.TempDir()
	corpus, err := train.CreateCorpus(filepath.Join(dir, "corpus"))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	corpus.Begin()
	ids := make([]int32, 2000)
	for i := range ids {
		ids[i] = random.Int32N(int32(a.Vocab))
	}
	if err := errors.Join(corpus.Add(ids, true, len(ids)), corpus.Close()); err != nil {
		t.Fatal(err)
	}
	run := func(name string, syncs []*counting, apart bool, rejoin func(rank int) (*ring.Comm, error)) engine.StateDict {
		task := train.Task{
			Trial: name, Dir: filepath.Join(dir, name), TrainPath: filepath.Join(dir, "corpus"), ValidPath: filepath.Join(dir, "corpus"),
			ByteLens: slices.Repeat([]int{1}, a.Vocab), Threads: 1, EvalTokens: 64,
			Config:  train.Config{Arch: a, BatchTokens: 12 * a.Context, Optimizer: engine.AdamW, LR: 1e-3, Warmup: 1, Seed: 3},
			Segment: train.Segment{Steps: 6, DecayFrom: 6},
		}
		models, errs := make([]*Model, len(syncs)), make([]error, len(syncs))
		var wg sync.WaitGroup
		for r, s := range syncs {
			var c train.Collective = s
			e := train.Env{
				Rank: r, World: len(syncs), Clock: func() time.Duration { return 0 },
				NewModel: func(c train.Config, _, world int) (engine.Model, error) {
					m, err := New(c.Arch, Options{Device: CPU, MaxBatch: c.MicroBatch(world), Optimizer: c.Optimizer, Seed: c.Seed})
					if err == nil && apart {
						setApart(m)
					}
					models[r] = m
					return m, err
				},
			}
			if rejoin != nil {
				e.Rejoin = func(context.Context, error) (train.Place, error) {
					next, err := rejoin(r)
					if err != nil {
						return train.Place{}, err
					}
					s.Comm = next
					return train.Place{Rank: next.Rank(), World: next.World(), Ring: s}, nil
				}
				if r == len(syncs)-1 {
					c, e.Rejoin = leaver{s}, nil
				}
			}
			e.Ring = c
			wg.Go(func() { _, errs[r] = train.Execute(t.Context(), task, e) })
		}
		wg.Wait()
		stays := len(syncs)
		if rejoin != nil {
			stays--
		}
		for r := range stays {
			if errs[r] != nil {
				t.Fatalf("%s, rank %d: %v", name, r, errs[r])
			}
			direct := syncs[r].Devices()
			if direct != (syncs[r].device >= 12) || apart && staged(models[r]) == direct {
				t.Errorf("%s: rank %d handed over %d buckets on its device; gradients on the host: %t", name, r, syncs[r].device, !direct)
			}
		}
		state, st, err := train.LoadCheckpoint(filepath.Join(task.Dir, "checkpoint"))
		if err != nil || st.Step != 6 {
			t.Fatalf("%s: a checkpoint of step %d, %v", name, st.Step, err)
		}
		return state
	}
	same := func(name string, got, want engine.StateDict, tolerance float64) {
		for i, w := range want {
			if got[i].Name != w.Name {
				t.Fatalf("%s: tensor %s, want %s", name, got[i].Name, w.Name)
			}
			near(t, name+": "+w.Name, got[i].Data, w.Data, tolerance)
		}
	}
	want := run("plain", inProcess(2), false, nil)
	same("nccl", run("nccl", counted(onGPUs(t, ring.Auto, 2, 1)), true, nil), want, 1e-6)
	var once sync.Once
	var next []*ring.Comm
	got := run("lost", counted(onGPUs(t, ring.Auto, 3, 1)), true, func(rank int) (*ring.Comm, error) {
		once.Do(func() { next = onGPUs(t, ring.Auto, 2, 2) })
		return next[rank], nil
	})
	// Other ranks drew other batches' shares, and sums of three have another order.
	same("nccl, a rank lost", got, want, 1e-4)
}
