package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

func loads(v ...float64) device.Machine {
	f := devicetest.New(len(v))
	for i, x := range v {
		f.Set(i, func(d *device.Device) { d.Load = x })
	}
	m, _ := f.Scan() // fails only when told to
	return m
}

func TestChoices(t *testing.T) {
	mine := loads(0, 0, 0).Devices
	p := device.DefaultLoadPolicy()
	sick := loads(0.1, 0.2, 0.3)
	sick.Devices[0].Sick = "XID 79"
	for name, tc := range map[string]struct {
		last device.Kind
		now  device.Machine
		want string // indices of GPUs, and why the processors
	}{
		"least load first":         {device.Auto, loads(0.5, 0.1, 0.3), "[1 2 0] "},
		"busy ones are left out":   {device.GPU, loads(0.7, 0.69, 0.9), "[1] gpu:0 has a load of 0.70, not under 0.70; gpu:2 has a load of 0.90, not under 0.70"},
		"back from the processors": {device.CPU, loads(0.65, 0.59, 0.6), "[1] gpu:0 has a load of 0.65, not under 0.60; gpu:2 has a load of 0.60, not under 0.60"},
		"unknown":                  {device.Auto, loads(-1, -1, -1), "[] gpu:0 has a load of -1.00, not under 0.70; gpu:1 has a load of -1.00, not under 0.70; gpu:2 has a load of -1.00, not under 0.70"},
		"sick":                     {device.Auto, sick, "[1 2] gpu:0 is sick: XID 79"},
		"vanished":                 {device.Auto, loads(0.1, 0.2), "[0 1] gpu:2 has vanished"},
	} {
		var at []int
		gpus, cpu := choices(p, tc.last, mine, tc.now)
		for _, c := range gpus {
			at = append(at, c.gpu)
			if c.Device != mine[c.gpu].ID || c.Reason == "" {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if got := fmt.Sprintf("%v %s", at, cpu.Reason); got != tc.want || cpu.Device != "cpu" {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A load that was the job's own fades, and keeps nothing off the GPU.
func TestPlaceLooksAgain(t *testing.T) {
	fake := devicetest.New(1)
	fake.Set(0, func(d *device.Device) { d.Load = 0.95 })
	s := newSite(t.TempDir(), job.Default(), &crew{devices: loads(0).Devices})
	looks := 0
	s.sources = func() []device.Source { return []device.Source{&looked{fake, func() { looks++ }}} }
	if gpus, _ := s.place(t.Context()); len(gpus) != 1 || looks != 2 {
		t.Errorf("after %d looks: %v", looks, gpus)
	}
	if s.mu.last != device.GPU {
		t.Errorf("last is %s", s.mu.last)
	}
	fake.Fail(os.ErrPermission)
	if gpus, cpu := s.place(t.Context()); len(gpus) != 0 || !strings.Contains(cpu.Reason, "not known") {
		t.Errorf("a machine that can't be looked at: %v, %+v", gpus, cpu)
	}
}

// looked is a fake whose GPU is quiet from the second look on.
type looked struct {
	*devicetest.Fake
	look func()
}

func (l *looked) Scan() (device.Machine, error) {
	defer l.Set(0, func(d *device.Device) { d.Load = 0.1 })
	l.look()
	return l.Fake.Scan()
}

// The finished model is scored on the quietest of the job's GPUs; once all are busy,
// on the processors. The journal says which, and why.
func TestScoringGoesByTheLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	for name, tc := range map[string]struct {
		load [2]float64 // while the model is scored
		want journal.Placed
	}{
		"one is quiet":   {[2]float64{0.9, 0.2}, journal.Placed{Device: "gpu:1", Reason: "its load of 0.20 is under 0.70"}},
		"both are quiet": {[2]float64{0.1, 0.2}, journal.Placed{Device: "gpu:0", Reason: "its load of 0.10 is under 0.70"}},
		"both are busy":  {[2]float64{0.8, 0.9}, journal.Placed{Device: "cpu", Reason: "gpu:0 has a load of 0.80, not under 0.70; gpu:1 has a load of 0.90, not under 0.70"}},
	} {
		t.Run(name, func(t *testing.T) {
			fake := devicetest.New(2)
			log := filepath.Join(t.TempDir(), "log")
			o := Options{
				Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-2"), Sources: one(fake), Lease: leaseIn(t),
				Worker: processOf("cuda", "AUTOGLM_TEST_LOG="+log),
			}
			trained := 0 // models made before the score
			var placed *journal.Placed
			o.Events.Journal = func(e journal.Event, _ *journal.State) {
				switch {
				case e.Kind == journal.StageStarted && e.Stage == job.StageEvaluate:
					for i, x := range tc.load {
						fake.Set(i, func(d *device.Device) { d.Load = x })
					}
					b, err := os.ReadFile(log)
					if err != nil {
						t.Error(err)
					}
					trained = len(b)
				case e.Kind == journal.Evaluated:
					placed = e.Placed
				}
			}
			if err := build(t, o); err != nil {
				t.Fatal(err)
			}
			if placed == nil || *placed != tc.want {
				t.Errorf("placed %+v, want %+v", placed, tc.want)
			}
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			made := strings.TrimSpace(string(b[trained:]))
			want := ""
			if n, ok := strings.CutPrefix(tc.want.Device, "gpu:"); ok {
				want = "GPU-00000000-0000-0000-0000-00000000000" + n
			}
			if made != want {
				t.Errorf("while it was scored a model was made on %q, want %q", made, want)
			}
		})
	}
}

func TestIdle(t *testing.T) {
	for _, tc := range []struct {
		processors int
		loadavg    string
		want       int
	}{
		{16, "0.10 0.2 0.3 1/100 7\n", maxWorkers}, {4, "0.10 0 0 1/1 7", 4}, {4, "2.6 0 0 1/1 7", 1}, {4, "2.4 0 0 1/1 7", 2}, {2, "31.0 0 0 1/1 7", 1}, {4, "", 1},
	} {
		if got := idle(tc.processors, tc.loadavg); got != tc.want {
			t.Errorf("%d processors under %q: %d, want %d", tc.processors, tc.loadavg, got, tc.want)
		}
	}
}

// Work that gives way runs on a thread with a lower priority, which ends with it.
func TestGiveWay(t *testing.T) {
	priority := func() int { // the kernel's 20 − nice
		n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	before, inside := priority(), 0
	if err := giveWay(func() error { inside = priority(); return os.ErrClosed }); err != os.ErrClosed {
		t.Errorf("%v", err)
	}
	if after := priority(); inside != min(before, 20-niceness) || after != before {
		t.Errorf("priority %d, inside %d, after it %d", before, inside, after)
	}
	if err := giveWay(func() error { panic("oh") }); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("a panic: %v", err)
	}
}
