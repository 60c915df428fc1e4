package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// workerRole makes this test's binary a worker process: "cpu" is this build's, and
// "cuda" one that computes on the processor where a GPU's would on its device.
const workerRole = "AUTOGLM_TEST_WORKER"

// mockNVML is the source of a process that plays "nvml", in a build that has it.
var mockNVML func() device.Source

// serveAs is TestMain's part in it.
func serveAs(role string) error {
	if role == "cpu" {
		return ServeWorker()
	}
	conn, err := worker.Inherited()
	if err != nil {
		return err
	}
	a := Ability()
	if role == "nvml" {
		a.GPUs = mockNVML
	}
	visible := os.Getenv("CUDA_VISIBLE_DEVICES")
	a.Facts = func() (worker.Facts, error) {
		f := worker.Facts{Torch: "a stand-in"}
		if strings.HasPrefix(visible, "GPU-") && role == "cuda" {
			f.CUDA = 1
		}
		return f, nil
	}
	a.Model = func(on worker.On) (maker, error) {
		if on.Engine != "torch" || !on.CUDA || on.CPUs != nil || visible == "" {
			return nil, fmt.Errorf("asked to compute on %+v with CUDA_VISIBLE_DEVICES=%q", on, visible)
		}
		if log := os.Getenv("AUTOGLM_TEST_LOG"); log != "" {
			f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			if _, err := fmt.Fprintln(f, visible); err != nil {
				return nil, err
			}
		}
		return newNative(nil), nil
	}
	return worker.Serve(conn, a)
}

func processOf(role string, env ...string) func() *exec.Cmd {
	return func() *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(append(os.Environ(), workerRole+"="+role), env...)
		return c
	}
}

// children lists the live worker processes of this one.
func children(t testing.TB) []int {
	t.Helper()
	return actorstest.Children(t, os.Getpid())
}

// Ranks in processes of their own give the bytes of ranks in one, however they
// join, and leave no process behind.
func TestIsolatedBuildGivesTheSameBytes(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	calm := filepath.Join(t.TempDir(), "calm")
	if err := build(t, Options{Dir: calm, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	want := outcome(t, calm)
	spec.Isolation = "process"
	for _, backend := range []string{"auto", "shm", "unix", "tcp"} {
		t.Run(backend, func(t *testing.T) {
			spec.Backend = backend
			dir := filepath.Join(t.TempDir(), "run")
			if err := build(t, Options{Dir: dir, Spec: spec, Worker: processOf("cpu")}); err != nil {
				t.Fatal(err)
			}
			if outcome(t, dir) != want {
				t.Error("the outcome differs from that of ranks in one process")
			}
			choice := map[string]string{"auto": "shm: all ranks are on one host"}[backend]
			if choice == "" {
				choice = backend + ": as asked for"
			}
			if log, err := os.ReadFile(filepath.Join(dir, "trials", "final", "metrics.jsonl")); err != nil || !strings.Contains(string(log), `"ring":"`+choice+`"`) {
				t.Errorf("the metrics don't say %q (%v)", choice, err)
			}
			if left := children(t); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
	spec.Backend = "inproc"
	var field *job.FieldError
	if _, err := Open(Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: spec}); !errors.As(err, &field) || field.Path != "backend" {
		t.Errorf("inproc between processes: %v", err)
	}
}

// Worker processes are killed, stopped and aborted in the middle of trials and of
// the final training; the build ends as if none had been.
func TestKilledWorkersChangeNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	calm := filepath.Join(t.TempDir(), "calm")
	if err := build(t, Options{Dir: calm, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	want := outcome(t, calm)
	spec.Isolation = "process"
	for _, tc := range []struct {
		name  string
		sig   syscall.Signal
		final bool
	}{
		{"kill in a trial", syscall.SIGKILL, false},
		{"kill in the final training", syscall.SIGKILL, true},
		{"abort in the final training", syscall.SIGABRT, true},
		{"stop in the final training", syscall.SIGSTOP, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var once sync.Once
			killed := 0
			var mu sync.Mutex
			told := ""
			o := Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: spec, Worker: processOf("cpu")}
			o.Notice = func(text string) {
				mu.Lock()
				defer mu.Unlock()
				told += text + "\n"
			}
			o.Hooks.Receive = func(who string, message any) {
				if m, ok := message.(*actors.Progress); ok && who == "trial" && (m.Trial == "final") == tc.final {
					once.Do(func() {
						killed = children(t)[0]
						if err := syscall.Kill(killed, tc.sig); err != nil {
							t.Error(err)
						}
					})
				}
			}
			if err := build(t, o); err != nil {
				t.Fatal(err)
			}
			if killed == 0 {
				t.Fatal("no process was killed")
			}
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(told, fmt.Sprintf("worker process %d was", killed)) && !strings.Contains(told, fmt.Sprintf("worker process %d ended", killed)) {
				t.Errorf("of process %d the user was told %q", killed, told)
			}
			if got := outcome(t, o.Dir); got != want {
				t.Errorf("the outcome differs from the undisturbed run's:\n%.2000s\nwant\n%.2000s", got, want)
			}
		})
	}
}

// gpuSpec asks for GPUs.
func gpuSpec(t testing.TB, constraint string) job.Spec {
	s := tinySpec(actorstest.Corpus(t, t.TempDir()))
	s.HardwareConstraint = constraint
	return s
}

// one lets a fake be all that there is of GPUs, beside this machine's processors.
func one(f *devicetest.Fake) func() []device.Source {
	return func() []device.Source { return []device.Source{device.NewProcFS(os.DirFS("/")), f} }
}

// leaseIn leases from a folder of its own.
func leaseIn(t testing.TB) Lease {
	l, err := device.OpenLeases(filepath.Join(t.TempDir(), "locks"))
	if err != nil {
		t.Fatal(err)
	}
	return func(m device.Machine, r device.Request, _ bool) ([]device.Device, *device.Held, error) {
		return l.Acquire(m, r, "a test", 0)
	}
}

// gpu-4x-a100 of 8 leases the best connected four; each has a process that sees it
// alone, and all train the final model as one ring.
func TestBuildOnGPUs(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	fake := devicetest.New(8)
	fake.Set(1, func(d *device.Device) { d.Sick = "XID 79" })
	log := filepath.Join(t.TempDir(), "log")
	o := Options{
		Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-4x-a100"), Sources: one(fake), Lease: leaseIn(t),
		Worker: processOf("cuda", "AUTOGLM_TEST_LOG="+log),
		Notice: func(text string) { t.Errorf("of an undisturbed build the user is told %q", text) },
	}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, d := range n.Devices() {
		ids = append(ids, d.ID)
	}
	if !slices.Equal(ids, []string{"gpu:4", "gpu:5", "gpu:7", "gpu:6"}) && !slices.Equal(ids, []string{"gpu:4", "gpu:5", "gpu:6", "gpu:7"}) {
		t.Errorf("leased %v: the other half is whole and on one node", ids)
	}
	if err := n.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	outcome(t, o.Dir)
	seen, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4; i < 8; i++ {
		if uuid := fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i); !strings.Contains(string(seen), uuid) {
			t.Errorf("nothing was computed on %s", uuid)
		}
	}
	if strings.Contains(string(seen), "000000000001\n") || strings.Contains(string(seen), ",") {
		t.Errorf("a process saw what it should not:\n%s", seen)
	}
	if r := readRan(o.Dir); r.Kind != device.GPU || len(r.Devices) != 4 {
		t.Errorf("devices.json says %+v", r)
	}
}

// A GPU that vanishes in the middle is taken out; the build goes on on the others.
func TestGPUVanishesInTheMiddle(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	for _, when := range []string{"t0", "final"} {
		t.Run(when, func(t *testing.T) {
			fake := devicetest.New(3)
			var once sync.Once
			var mu sync.Mutex
			sick := ""
			o := Options{
				Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-3"), Sources: one(fake), Lease: leaseIn(t),
				Worker: processOf("cuda"), Look: 5 * time.Millisecond,
			}
			told := ""
			o.Notice = func(text string) {
				mu.Lock()
				defer mu.Unlock()
				told += text + "\n"
			}
			if when == "final" {
				o.Spec.Budget = job.Budget{Tokens: 80_000}
			}
			o.Hooks.Receive = func(who string, message any) {
				switch m := message.(type) {
				case *actors.Progress:
					if m.Trial == when || when == "t0" && m.Trial != "final" {
						once.Do(func() { fake.Remove(0) })
					}
				case *actors.Sick:
					mu.Lock()
					sick = m.Why
					mu.Unlock()
				}
			}
			if err := build(t, o); err != nil {
				t.Fatal(err)
			}
			outcome(t, o.Dir)
			mu.Lock()
			defer mu.Unlock()
			if sick != "vanished" || !strings.Contains(told, "gpu:0 is taken out: vanished; going on without it") {
				t.Errorf("the worker heard %q, the user %q", sick, told)
			}
		})
	}
}

// A processor that goes offline in the middle is taken out, whether its rank has a
// process or not; the build goes on on the others.
func TestProcessorGoesOffline(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two processors")
	}
	for _, isolation := range []string{"none", "process"} {
		t.Run(isolation, func(t *testing.T) {
			if testing.Short() && isolation == "process" {
				t.Skip("-short starts no processes")
			}
			root := t.TempDir()
			online := filepath.Join(root, "sys/devices/system/cpu/online")
			set := func(cpus string) {
				// At once: a look in between sees the one or the other.
				if err := durable.WriteFile(online, []byte(cpus+"\n")); err != nil {
					t.Error(err)
				}
			}
			if err := os.MkdirAll(filepath.Dir(online), 0o755); err != nil {
				t.Fatal(err)
			}
			set("0-1")
			var once sync.Once
			var mu sync.Mutex
			told := ""
			o := Options{
				Dir: filepath.Join(t.TempDir(), "run"), Spec: tinySpec(actorstest.Corpus(t, t.TempDir())), Lease: leaseIn(t), Worker: processOf("cpu"), Look: 5 * time.Millisecond,
				Sources: func() []device.Source { return []device.Source{device.NewProcFS(os.DirFS(root))} },
			}
			o.Spec.Isolation = isolation
			o.Spec.Budget = job.Budget{Tokens: 80_000}
			o.Notice = func(text string) {
				mu.Lock()
				defer mu.Unlock()
				told += text + "\n"
			}
			gone := make(chan struct{})
			o.Hooks.Receive = func(who string, message any) {
				switch message.(type) {
				case *actors.Progress:
					once.Do(func() { set("0") })
				case *actors.Sick:
					close(gone)
				}
			}
			if err := build(t, o); err != nil {
				t.Fatal(err)
			}
			outcome(t, o.Dir)
			select {
			case <-gone:
			default:
				t.Error("no worker heard of it")
			}
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(told, "cpu:1 is taken out: it went offline") {
				t.Errorf("the user heard %q", told)
			}
		})
	}
}

// With all of its GPUs gone a job ends with its state kept, and resume goes on.
func TestAllGPUsVanish(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	fake := devicetest.New(2)
	var once sync.Once
	o := Options{
		Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-2"), Sources: one(fake), Lease: leaseIn(t),
		Worker: processOf("cuda"), Look: 5 * time.Millisecond,
	}
	o.Spec.Budget = job.Budget{Tokens: 60_000}
	o.Hooks.Receive = func(who string, message any) {
		if _, ok := message.(*actors.Progress); ok {
			once.Do(func() {
				for i := range 2 {
					fake.Set(i, func(d *device.Device) { d.Sick = "XID 79" })
				}
			})
		}
	}
	if err := build(t, o); err == nil || !strings.Contains(err.Error(), "no device is left") {
		t.Fatalf("%v", err)
	}
	for i := range 2 {
		fake.Set(i, func(d *device.Device) { d.Sick = "" })
	}
	o.Hooks.Receive, o.Resume = nil, true
	if err := build(t, o); err != nil {
		t.Fatalf("resume: %v", err)
	}
	outcome(t, o.Dir)
}

// A job that may compute on either goes where the GPUs are quiet.
func TestAutoGoesByTheLoad(t *testing.T) {
	load := func(f *devicetest.Fake, v ...float64) {
		for i, x := range v {
			f.Set(i, func(d *device.Device) { d.Load = x })
		}
	}
	fake := devicetest.New(3)
	spec := tinySpec("x")
	spec.HardwareConstraint = "auto"
	o := Options{Sources: one(fake), Worker: processOf("cuda")}
	kinds := func(last device.Kind) string {
		t.Helper()
		_, ds, _, err := Devices(spec, o, last)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", len(ds), ds[0].Kind)
	}
	load(fake, 0.1, 0.65, 0.9)
	if got := kinds(device.Auto); got != "2 gpu" {
		t.Errorf("two of three are quiet: %s", got)
	}
	if got := kinds(device.CPU); got != "1 gpu" {
		t.Errorf("back from the CPU only under 0.6: %s", got)
	}
	load(fake, 0.7, 0.8, -1)
	if got := kinds(device.Auto); !strings.HasSuffix(got, "cpu") {
		t.Errorf("all are busy or unknown: %s", got)
	}
	spec.Placement = job.Placement{GPULoad: 0.75}
	if got := kinds(device.CPU); got != "1 gpu" {
		t.Errorf("under a threshold of 0.75 without hysteresis: %s", got)
	}
	load(fake, 0, 0, 0)
	waits := ""
	o.Lease = func(m device.Machine, r device.Request, wait bool) ([]device.Device, *device.Held, error) {
		waits += fmt.Sprintf("%s %t ", r.Kind, wait)
		if r.Kind == device.GPU {
			return nil, nil, device.ErrBusy
		}
		ds, err := m.Match(r)
		return ds, nil, err
	}
	if got := kinds(device.Auto); !strings.HasSuffix(got, "cpu") || waits != "gpu false auto true " {
		t.Errorf("others hold the GPUs: %s, asked %q", got, waits)
	}
	for _, change := range []func(){
		func() { spec.Engine = "native" },
		func() { spec.Isolation = "none" },
		func() { o.Worker = nil }, // this build's own, without libtorch
	} {
		spec, o = tinySpec("x"), Options{Sources: one(fake), Worker: processOf("cuda")}
		spec.HardwareConstraint = "auto"
		change()
		if newTorch == nil || o.Worker != nil {
			if got := kinds(device.Auto); !strings.HasSuffix(got, "cpu") {
				t.Errorf("engine %s, isolation %s: %s", spec.Engine, spec.Isolation, got)
			}
		}
	}
}

// GPUs that no process can compute on are as those that are not there: auto and
// --allow-fallback go on with the CPU, and say why.
func TestGPUsThatCanNotBeUsed(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	fake := devicetest.New(2)
	for i := range 2 {
		fake.Set(i, func(d *device.Device) { d.Load = 0 })
	}
	for _, constraint := range []string{"auto", "gpu-2"} {
		told := ""
		o := Options{
			Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, constraint), Sources: one(fake), Lease: leaseIn(t),
			Worker: processOf("cuda without a device"), AllowFallback: constraint != "auto",
			Fallback: func(asked error, _ []device.Device) { told = asked.Error() },
		}
		n, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if n.Devices()[0].Kind != device.CPU || !strings.Contains(told, "libtorch sees 0 CUDA devices") {
			t.Errorf("%s: on %s, told %q", constraint, n.Devices()[0].ID, told)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Requests for GPUs that can't be met say what is missing and what to do.
func TestGPUsRefused(t *testing.T) {
	fake := devicetest.New(2)
	for name, tc := range map[string]struct {
		change func(*Options)
		want   string
		unmet  bool
	}{
		"none there":        {func(o *Options) { o.Sources = one(devicetest.New(0)) }, "no GPU", true},
		"too few":           {func(o *Options) { o.Spec.HardwareConstraint = "gpu-4x-a100" }, "asks for 4 GPUs", true},
		"engine native":     {func(o *Options) { o.Spec.Engine = "native" }, "native computes on CPUs", false},
		"in this process":   {func(o *Options) { o.Spec.Isolation = "none" }, "processes of their own", false},
		"libtorch for CPUs": {func(o *Options) { o.Worker = processOf("cuda without a device") }, "libtorch sees 0 CUDA devices where gpu:", true},
		"no permission": {func(o *Options) {
			fake := devicetest.New(2)
			fake.Set(0, func(d *device.Device) { d.Sick = "no permission to open /dev/nvidia0" })
			o.Sources = one(fake)
		}, "no permission to open /dev/nvidia0", true},
		"no UUID": {func(o *Options) {
			fake := devicetest.New(2)
			fake.Set(1, func(d *device.Device) { d.UUID = "GPU-0000:01:00.0" })
			o.Sources = one(fake)
		}, "UUID of gpu:1 is not known", true},
	} {
		if testing.Short() && name == "libtorch for CPUs" {
			continue // -short starts no processes
		}
		o := Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-2"), Sources: one(fake), Worker: processOf("cuda")}
		tc.change(&o)
		n, err := Open(o)
		if err == nil {
			n.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, device.ErrUnmet) != tc.unmet {
			t.Errorf("%s: %v", name, err)
		}
	}
	if newTorch == nil {
		o := Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-2"), Sources: one(fake)}
		if _, err := Open(o); !errors.Is(err, device.ErrUnmet) || !strings.Contains(err.Error(), "autoglm libtorch fit") {
			t.Errorf("this build: %v", err)
		}
	}
}
