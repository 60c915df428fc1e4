package train

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/ddp"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// lastMetrics reads the last record that reports a step.
func lastMetrics(t *testing.T, dir string) (last StepMetrics) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var m StepMetrics
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if m.Bits == 0 {
			last = m
		}
	}
	return last
}

// The optimiser's state divided over ranks trains the same model, and its
// checkpoint is a whole one: another number of ranks goes on from it.
func TestZeroOne(t *testing.T) {
	dir, tok := corpora(t, 3)
	run := func(name, from string, steps, world, zero int) (Report, engine.StateDict) {
		task := tinyTask(dir, tok)
		task.Dir, task.Zero = filepath.Join(dir, name), zero
		if from != "" {
			task.From = filepath.Join(dir, from, "checkpoint")
		}
		task.Segment = Segment{Steps: steps, DecayFrom: float64(steps) - 10}
		reps, errs := ranks(t, task, world)
		for _, err := range errs {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		s, _, err := LoadCheckpoint(filepath.Join(task.Dir, "checkpoint"))
		if err != nil {
			t.Fatal(err)
		}
		return reps[0], s
	}
	same := func(name string, got, want engine.StateDict) {
		t.Helper()
		for i, w := range want {
			g := got[i]
			if g.Name != w.Name || len(g.Data) != len(w.Data) {
				t.Fatalf("%s: tensor %s where %s was expected", name, g.Name, w.Name)
			}
			for j := range w.Data {
				if d := math.Abs(float64(g.Data[j] - w.Data[j])); d > 1e-5*(1+math.Abs(float64(w.Data[j]))) {
					t.Fatalf("%s: %s[%d] is %g, undivided %g", name, w.Name, j, g.Data[j], w.Data[j])
				}
			}
		}
	}
	for _, world := range []int{2, 3} {
		_, want := run("whole"+string(rune('0'+world)), "", 40, world, 0)
		_, got := run("divided"+string(rune('0'+world)), "", 40, world, 1)
		same("divided", got, want)
	}
	_, want := run("on", "whole2", 60, 3, 0)
	_, got := run("on-divided", "divided2", 60, 3, 1)
	same("continued by three", got, want)
	if m := lastMetrics(t, filepath.Join(dir, "on-divided")); m.WireBytes == 0 || m.WireBytes > m.SyncBytes*11/20 {
		t.Errorf("%d of %d bytes go out to be summed", m.WireBytes, m.SyncBytes)
	}
}

// Muon's state is not divided, and trains as without.
func TestZeroOneLeavesMuonWhole(t *testing.T) {
	dir, tok := corpora(t, 3)
	task := tinyTask(dir, tok)
	task.Config.Optimizer, task.Config.MuonLR, task.Zero = engine.Muon, 0.02, 1
	if _, errs := ranks(t, task, 2); errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
}

// At every level of compression the model learns as well, and the records say
// what travelled.
func TestCompressedTrainingLearns(t *testing.T) {
	dir, tok := corpora(t, 3)
	score := map[string]float64{}
	for _, mode := range ddp.Modes() {
		for zero := range 2 {
			task := tinyTask(dir, tok)
			task.Dir, task.Compression, task.Zero = filepath.Join(dir, mode+string(rune('0'+zero))), mode, zero
			reps, errs := ranks(t, task, 2)
			if errs[0] != nil || errs[1] != nil {
				t.Fatalf("%s: %v", mode, errs)
			}
			if zero == 0 {
				score[mode] = reps[0].Bits
			}
			allowed := 0.03
			if mode == "powersgd" {
				allowed = 0.2 // 4 directions of 64, over forty steps
			}
			if d := reps[0].Bits - score["none"]; d > allowed {
				t.Errorf("%s, stage %d: %.3f bits per byte, plain %.3f", mode, zero, reps[0].Bits, score["none"])
			}
			m := lastMetrics(t, task.Dir)
			if want := map[string]string{"bf16": "bf16 ", "int8": "int8 ", "powersgd": "powersgd "}[mode]; !strings.HasPrefix(m.Compression, want) || want == "" && m.Compression != "" {
				t.Errorf("%s is recorded as %q", mode, m.Compression)
			}
		}
	}
}

// onDevices is a ring that sums in the memory of GPUs, or doesn't.
type onDevices struct {
	Collective
	devices bool
}

func (o onDevices) Devices() bool { return o.devices }

// Gradients on a device are taken there by a ring between GPUs, unless they are
// compressed or shared out on the way.
func TestTakesDevice(t *testing.T) {
	for _, c := range []struct {
		devices     bool
		compression string
		zero, want  bool
	}{
		{devices: true, want: true},
		{devices: true, compression: "none", want: true},
		{devices: false},
		{devices: true, compression: "bf16"},
		{devices: true, compression: "auto"},
		{devices: true, zero: true},
	} {
		a := glm.Arch{Vocab: 8, Dim: 8, Layers: 1, Heads: 1, KVHeads: 1, FFN: 8, Context: 8}.WithDefaults()
		cfg := Config{Arch: a, BatchTokens: 32, Optimizer: engine.AdamW}
		m, err := newTestModel(cfg, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		r := Run{Model: m, Config: cfg, World: 2, Ring: onDevices{ring.NewGroup(2, 1).Rank(0), c.devices}, Compression: c.compression}
		if c.zero {
			r.Shard = m.(engine.Sharded)
		}
		sync, err := r.newMeter()
		if err != nil {
			t.Fatal(err)
		}
		if got := engine.DeviceSync(sync).TakesDevice(); got != c.want {
			t.Errorf("%+v: takes device buffers: %t", c, got)
		}
		if err := sync.close(); err != nil {
			t.Error(err)
		}
	}
}
