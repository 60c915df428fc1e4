package serve

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

// A load that rises and falls: texts leave the GPU at the bound, and come back below it by
// the hysteresis; it is looked at once a second, and only where a text begins.
func TestRouterFollowsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		load, looks := 0.0, 0
		r, err := NewRouter(RouterConfig{Load: func() float64 { looks++; return load }, Policy: device.LoadPolicy{Threshold: 0.7, Hysteresis: 0.1}})
		if err != nil {
			t.Fatal(err)
		}
		for i, step := range []struct {
			load float64
			want device.Kind
		}{
			{0, device.GPU},
			{0.69, device.GPU},
			{0.7, device.CPU},
			{0.65, device.CPU},
			{0.6, device.CPU},
			{0.59, device.GPU},
			{0.69, device.GPU},
			{1, device.CPU},
			{-1, device.CPU},
			{math.NaN(), device.CPU},
			{0.3, device.GPU},
			{-1, device.CPU},
			{0.65, device.CPU},
		} {
			load = step.load
			if got := r.Next(); got != step.want {
				t.Errorf("step %d: a load of %g sends to the %s", i, load, got)
			}
			load = 1 - load // not looked at before the second is over
			time.Sleep(lookEvery - time.Nanosecond)
			if got := r.Next(); got != step.want || looks != i+1 {
				t.Errorf("step %d: %s after %d looks", i, got, looks)
			}
			time.Sleep(time.Nanosecond)
		}
		r.Fail(errors.New("gone"))
		load = 0
		if got := r.Next(); got != device.CPU || r.Failed() == nil {
			t.Errorf("a GPU that failed is sent to")
		}
	})
	if _, err := NewRouter(RouterConfig{Policy: device.LoadPolicy{Threshold: 2}}); err == nil {
		t.Error("a threshold of 2 is taken")
	}
}

// Who asks while a look takes long is answered by the last one.
func TestRouterSlowLook(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	r, err := NewRouter(RouterConfig{Load: func() float64 { close(entered); <-release; return 0 }, Policy: device.DefaultLoadPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan device.Kind)
	go func() { first <- r.Next() }()
	<-entered
	if got := r.Next(); got != device.CPU {
		t.Errorf("%s, of a load that nobody has seen", got)
	}
	close(release)
	if got := <-first; got != device.GPU {
		t.Error(got)
	}
}

// failing is a decoder that fails from a call on.
type failing struct {
	engine.Decoder
	left atomic.Int64 // calls that succeed
}

var errGone = errors.New("the device vanished")

func (f *failing) Prefill(seq int, ids []int32) ([]float32, error) {
	if f.left.Add(-1) < 0 {
		return nil, errGone
	}
	return f.Decoder.Prefill(seq, ids)
}

func (f *failing) Decode(seqs []int, ids []int32) ([]float32, error) {
	if f.left.Add(-1) < 0 {
		return nil, errGone
	}
	return f.Decoder.Decode(seqs, ids)
}

// pair is a hub of one model on two devices, of which gpu stands for the GPU.
func pair(t *testing.T, gpu func(engine.Decoder) engine.Decoder, load func() float64, change func(*SchedulerConfig)) (*bundle.Bundle, *Model, *Router) {
	t.Helper()
	b := servetest.Bundle(t, 1)
	r, err := NewRouter(RouterConfig{Load: load, Policy: device.DefaultLoadPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultSchedulerConfig()
	if change != nil {
		change(&cfg)
	}
	h := NewHub(func(string, int) (*bundle.Bundle, engine.Decoder, error) {
		return b, &Pair{Decoder: tinyDecoder(t, b, 1), GPU: gpu(tinyDecoder(t, b, 1)), Router: r}, nil
	}, cfg, nil)
	if err := h.Load("tiny", ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		h.Drain(ctx)
	})
	return b, h.Models()[0], r
}

// again makes the load that was seen last one of long ago.
func again(r *Router) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.looked = r.mu.looked.Add(-lookEvery)
}

func idle() float64 { return 0 }

// Both kinds generate at once; a text stays on the GPU when the load rises.
func TestPairRoutes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	b := servetest.Bundle(t, 1)
	alone := schedule(t, b, tinyDecoder(t, b, 1), nil)
	defer alone.Close()
	want, err := alone.Generate(t.Context(), sampled(b, "the fox", 3, 30), nil)
	if err != nil {
		t.Fatal(err)
	}
	var gate *servetest.Gate
	var busy atomic.Bool
	load := func() float64 {
		if busy.Load() {
			return 1
		}
		return 0
	}
	_, m, r := pair(t, func(dec engine.Decoder) engine.Decoder { gate = servetest.NewGate(dec); return gate }, load, func(c *SchedulerConfig) { c.Slots = 2 })
	defer m.Close()
	defer gate.Open()
	var wg sync.WaitGroup
	begin := func(n int) {
		for range n {
			wg.Go(func() {
				res, err := m.Generate(t.Context(), sampled(b, "the fox", 3, 30), nil)
				if err != nil || res.Text != want.Text {
					t.Errorf("%q, alone %q: %v", res.Text, want.Text, err)
				}
			})
		}
	}
	devices := func() (gpu, cpu DeviceStatus) {
		all := m.Status().Devices
		return all[0], all[1]
	}
	r.Next()
	begin(2)
	wait(t, func() bool { gpu, _ := devices(); return gpu.Running+gpu.Waiting == 2 })
	busy.Store(true)
	again(r)
	r.Next() // those who ask during a look are answered by the last one
	begin(3)
	wait(t, func() bool { _, cpu := devices(); return cpu.Requests == 3 && cpu.Running == 0 }) // while the GPU's wait
	if st := m.Status(); st.Running+st.Waiting != 2 || st.Slots != 4 {
		t.Errorf("%+v", st)
	}
	gate.Open()
	wg.Wait()
	gpu, cpu := devices()
	if gpu.Requests != 2 || cpu.Requests != 3 || gpu.Failed+cpu.Failed != 0 || gpu.Load != 1 {
		t.Errorf("GPU %+v, CPU %+v", gpu, cpu)
	}
}

// A GPU that fails is left out. Texts of which nothing was emitted begin again on the CPU,
// others end with an error that says why.
func TestPairFails(t *testing.T) {
	b := servetest.Bundle(t, 1)
	alone := schedule(t, b, tinyDecoder(t, b, 1), nil)
	for _, c := range []struct {
		name  string
		calls int64 // of the GPU that succeed
		whole bool
		again bool
	}{
		{"at the prompt", 0, false, true},
		{"in the middle of a text", 20, false, false},
		{"in the middle of one that nobody has seen", 20, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, m, r := pair(t, func(dec engine.Decoder) engine.Decoder {
				f := &failing{Decoder: dec}
				f.left.Store(c.calls)
				return f
			}, idle, nil)
			want, err := alone.Generate(t.Context(), sampled(b, "the", 5, 40), nil)
			if err != nil {
				t.Fatal(err)
			}
			text := ""
			req := sampled(b, "the", 5, 40)
			req.Whole = c.whole
			res, err := m.Generate(t.Context(), req, func(p Piece) error { text += p.Text; return nil })
			if c.again && (err != nil || res.Text != want.Text || text != want.Text) {
				t.Errorf("%q, emitted %q, want %q: %v", res.Text, text, want.Text, err)
			}
			if !c.again && (!errors.Is(err, errGone) || !strings.Contains(err.Error(), "GPU failed") || res.Text == "") {
				t.Errorf("%q, %v", res.Text, err)
			}
			if !errors.Is(r.Failed(), errGone) {
				t.Errorf("the router knows of %v", r.Failed())
			}
			if _, err := m.Generate(t.Context(), sampled(b, "the", 5, 4), nil); err != nil {
				t.Error(err)
			}
			gpu, cpu := m.Status().Devices[0], m.Status().Devices[1]
			cpus := int64(1)
			if c.again {
				cpus++
			}
			if gpu.Requests != 1 || gpu.Failed != 1 || cpu.Requests != cpus || cpu.Failed != 0 {
				t.Errorf("GPU %+v, CPU %+v", gpu, cpu)
			}
		})
	}
}

// Texts under way on the GPU and the CPU, in a queue and at their prompts, when the GPU
// fails: every one ends, well or with the GPU's error.
func TestPairFailsUnderLoad(t *testing.T) {
	var turn atomic.Int64
	b, m, r := pair(t, func(dec engine.Decoder) engine.Decoder {
		f := &failing{Decoder: dec}
		f.left.Store(25)
		return f
	}, func() float64 { return float64(turn.Add(1) % 2) }, func(c *SchedulerConfig) { c.Slots, c.Queue = 3, 32 })
	var wg sync.WaitGroup
	var well, ill atomic.Int64
	r.Next()
	for i := range 24 {
		wg.Go(func() {
			again(r) // each looks
			_, err := m.Generate(t.Context(), sampled(b, "the quick", uint64(i), 20), func(Piece) error { return nil })
			switch {
			case err == nil:
				well.Add(1)
			case errors.Is(err, errGone):
				ill.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if well.Load()+ill.Load() != 24 || ill.Load() > 3 || r.Failed() == nil {
		t.Errorf("%d well, %d ill, %v", well.Load(), ill.Load(), r.Failed())
	}
}

// What the GPU can't take, the CPU may.
func TestPairFallsBack(t *testing.T) {
	var gate *servetest.Gate // has no embeddings either
	b, m, _ := pair(t, func(dec engine.Decoder) engine.Decoder { gate = servetest.NewGate(dec); return gate }, idle, func(c *SchedulerConfig) { c.Slots, c.Queue = 1, 0 })
	var wg sync.WaitGroup
	defer wg.Wait()
	defer gate.Open()
	wg.Go(func() {
		if _, err := m.Generate(t.Context(), sampled(b, "the", 1, 2), nil); err != nil {
			t.Error(err)
		}
	})
	wait(t, func() bool { return m.Status().Running == 1 })
	if _, err := m.Generate(t.Context(), sampled(b, "the", 1, 2), nil); err != nil {
		t.Errorf("with the GPU's queue full: %v", err)
	}
	res, err := m.Generate(t.Context(), Request{Prompt: "the", Context: b.Arch.Context, Embed: true}, nil)
	if err != nil || len(res.Embedding) != b.Arch.Dim {
		t.Errorf("an embedding: %v", err)
	}
}
