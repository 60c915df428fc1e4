package native

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// allocated is what New allocated for the model's numbers, bytes.
func (m *Model) allocated() int64 {
	n := len(m.params) + len(m.grads) + len(m.m) + len(m.v) + len(m.rope.cos) + len(m.rope.sin) + len(m.forms)
	for i, w := range m.worker {
		if i > 0 {
			n += len(w.arena)
		}
		n += len(w.floats)
	}
	return 4 * int64(n)
}

// training is what an estimate needs to know of options.
func (o Options) training() glm.Training {
	return glm.Training{
		Sequences: o.MaxBatch, Tokens: o.MaxSeq, Threads: o.Threads,
		BF16: o.Precision == engine.BF16, Muon: o.Optimizer == engine.Muon, Recompute: o.Recompute,
	}
}

// TestTrainingBytes: the estimate is what New allocates, to the byte.
func TestTrainingBytes(t *testing.T) {
	for _, a := range []glm.Arch{
		arch(6, 1, 3, 3, 5, 7, false), arch(64, 2, 4, 2, 192, 300, true), arch(96, 3, 3, 1, 250, 5000, false), arch(128, 4, 4, 4, 352, 512, true),
		arch(64, 2, 2, 1, 192, 300, true).WithHead(16), arch(32, 2, 3, 3, 96, 300, true).WithHead(16),
	} {
		for _, o := range []Options{
			{Threads: 1, MaxBatch: 1, MaxSeq: 1},
			{Threads: 1, MaxBatch: 16, MaxSeq: 32},
			{Threads: 2, MaxBatch: 3, MaxSeq: 200, Recompute: true},
			{Threads: 3, MaxBatch: 2, MaxSeq: 700, Optimizer: engine.Muon},
			{Threads: 2, MaxBatch: 64, MaxSeq: 64, Precision: engine.BF16},
			{Threads: 1, MaxBatch: 2, MaxSeq: 1025, Precision: engine.BF16, Optimizer: engine.Muon, Recompute: true},
		} {
			m := build(t, a, o)
			if got, want := a.TrainingBytes(m.opt.training()), m.allocated(); got != want {
				t.Errorf("%s %+v: %d bytes by estimate, %d in fact", a, o, got, want)
			}
			m.Close()
		}
	}
}

// TestDecodingBytes: the estimate is what a decoder allocates until its caches are full.
func TestDecodingBytes(t *testing.T) {
	for _, a := range []glm.Arch{arch(64, 2, 4, 2, 192, 300, true), arch(96, 3, 3, 1, 250, 5000, false), arch(128, 4, 4, 4, 352, 512, true), arch(64, 2, 2, 1, 192, 300, true).WithHead(16), arch(64, 2, 3, 3, 192, 300, true).WithHead(32)} {
		for _, o := range []DecoderOptions{{Threads: 1, MaxSeqs: 1}, {Threads: 3, MaxSeqs: 2}} {
			for _, kind := range glm.AllWeights {
				o.Weights = kind
				layout, size := a.Layout()
				d, err := NewDecoder(a, engine.Parameters(layout, make([]float32, size)), o)
				if err != nil {
					t.Fatal(err)
				}
				var seqs []int
				for s := range o.MaxSeqs {
					seqs = append(seqs, s)
					if _, err := d.Prefill(s, make([]int32, a.Context-1)); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := d.Decode(seqs, make([]int32, len(seqs))); err != nil {
					t.Fatal(err)
				}
				n, bytes := len(d.rope.cos)+len(d.rope.sin)+len(d.logits), 0
				held := func(w weights) {
					n += len(w.floats)
					if w.narrow != nil {
						bytes += kernel.NarrowBytes(w.narrow.Bits, w.n, w.k)
					}
				}
				held(d.head)
				n += len(d.norm) + len(d.embed.floats)
				for _, l := range d.layers {
					n += len(l.norm1) + len(l.norm2)
				}
				if !a.Tied {
					held(d.embed.packed)
				}
				for _, l := range d.layers {
					held(l.qkv)
					held(l.o)
					held(l.glu)
					held(l.down)
				}
				for _, p := range d.pages.all {
					n += len(p.data)
				}
				for _, w := range d.worker {
					n += len(w.x) + len(w.n) + len(w.qkv) + len(w.att) + len(w.glu) + len(w.act) + len(w.scores) + len(w.sums) + len(w.want) + len(w.logits) + len(w.product.work)
					bytes += len(w.product.records)
				}
				if got, want := a.DecodingBytes(kind, o.MaxSeqs, o.Threads), 4*int64(n)+int64(bytes); got != want {
					t.Errorf("%s %+v: %d bytes by estimate, %d in fact", a, o, got, want)
				}
				d.Close()
			}
		}
	}
}

// footprints are models whose memory is measured in a process of their own.
var footprints = []struct {
	a glm.Arch
	o Options
}{
	{arch(256, 4, 4, 4, 704, 4096, true), Options{Threads: 1, MaxBatch: 8, MaxSeq: 256}},
	{arch(256, 4, 4, 4, 704, 4096, true), Options{Threads: 2, MaxBatch: 8, MaxSeq: 256, Precision: engine.BF16}},
	{arch(128, 4, 4, 4, 352, 512, true), Options{Threads: 2, MaxBatch: 16, MaxSeq: 128, Precision: engine.BF16}},
	{arch(64, 12, 4, 2, 256, 1000, false), Options{Threads: 1, MaxBatch: 2, MaxSeq: 2048, Recompute: true}},
	{arch(192, 3, 3, 3, 512, 16000, false), Options{Threads: 3, MaxBatch: 8, MaxSeq: 64, Optimizer: engine.Muon}},
}

const footprintEnv = "AUTOGLM_TEST_FOOTPRINT"

// TestFootprint holds the estimate against a process's resident memory.
func TestFootprint(t *testing.T) {
	if i, err := strconv.Atoi(os.Getenv(footprintEnv)); err == nil {
		trainForFootprint(t, i)
		return
	}
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	if raceDetector {
		t.Skip("the race detector keeps a shadow of all memory")
	}
	if _, err := resident(); err != nil {
		t.Skip(err)
	}
	for i, f := range footprints {
		if f.o.Precision == engine.BF16 && !kernel.FastBF16() {
			continue // the portable products are slow
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestFootprint$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", footprintEnv, i))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", f.a, err, out)
		}
		_, after, ok := strings.Cut(string(out), "grew by ")
		if !ok {
			t.Fatalf("%s: %s", f.a, out)
		}
		number, _, _ := strings.Cut(after, " ")
		grew, err := strconv.ParseFloat(number, 64)
		if err != nil {
			t.Fatal(err)
		}
		want := float64(f.a.TrainingBytes(f.o.withDefaults(f.a).training()))
		t.Logf("%s, %d threads: %.1f MB by estimate, %.1f MB resident, %.3f", f.a, f.o.Threads, want/1e6, grew/1e6, want/grew)
		if r := want / grew; r < 0.9 || r > 1.1 {
			t.Errorf("%s %+v: %.0f bytes by estimate, %.0f in fact", f.a, f.o, want, grew)
		}
	}
}

func trainForFootprint(t *testing.T, i int) {
	f := footprints[i]
	b := randomBatch(rand.New(rand.NewPCG(1, 1)), f.o.MaxBatch, f.o.MaxSeq, f.a.Vocab, false)
	h := engine.DefaultHyper()
	h.Optimizer = f.o.withDefaults(f.a).Optimizer
	debug.FreeOSMemory()
	before, err := resident()
	if err != nil {
		t.Fatal(err)
	}
	m := build(t, f.a, f.o)
	for range 2 {
		if _, err := m.Backward(b, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Update(h); err != nil {
			t.Fatal(err)
		}
	}
	after, err := resident()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("grew by %d bytes", after-before)
}

// resident is this process's resident memory, bytes.
func resident() (int64, error) {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(raw), &size, &pages); err != nil {
		return 0, err
	}
	return pages * int64(os.Getpagesize()), nil
}
