package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// role makes this binary one of the processes that the tests are about.
const role = "AUTOGLM_TEST_ROLE"

func TestMain(m *testing.M) {
	switch r := os.Getenv(role); r {
	case "":
		goleak.VerifyTestMain(m)
	case "host": // a node that dies: it starts a child and says which
		h := NewHost(Config{Command: as("sleeps")})
		if _, err := h.Facts(context.Background()); err != nil {
			panic(err)
		}
		fmt.Println(h.PID())
		_, _ = h.Train(context.Background(), &actors.Assign{World: 1}, On{}, nil)
	case "dumb":
		fmt.Fprintln(os.Stderr, "libtorch_cuda.so: cannot open shared object file")
		os.Exit(127)
	case "mute":
		select {}
	case "babble":
		conn, err := Inherited()
		if err != nil {
			panic(err)
		}
		fmt.Fprint(conn, "GET / HTTP/1.1\r\n\r\n")
		select {}
	default:
		conn, err := Inherited()
		if err != nil {
			panic(err)
		}
		able := Ability{
			Model: func(On) (func(train.Config, int, int) (engine.Model, error), error) {
				return func(train.Config, int, int) (engine.Model, error) { return behave(r) }, nil
			},
			Time:  func(context.Context, Timing) (glm.Rates, error) { return glm.Rates{Product: 42}, nil },
			Facts: func() (Facts, error) { return Facts{CUDA: 1}, nil },
			GPUs:  func() device.Source { return devicetest.New(8) },
		}
		if r == "joins" {
			ring.Register(ring.Library{Name: ring.NCCL, Devices: true, Check: func() error { return nil }, Join: func(p ring.Place) (ring.Collectives, error) {
				return nil, fmt.Errorf("NCCL on GPU %d", p.GPU.Ordinal)
			}})
		}
		if r == "crashing driver" {
			able.GPUs = func() device.Source { return crashing{} }
		}
		if err := Serve(conn, able); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// behave is what a child does in place of making a model.
func behave(r string) (engine.Model, error) {
	switch r {
	case "panics":
		panic("index out of range")
	case "aborts":
		fmt.Fprintln(os.Stderr, "terminate called after throwing an instance of 'c10::Error'")
		_ = syscall.Kill(os.Getpid(), syscall.SIGABRT)
	case "is killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "stops":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "exits":
		os.Exit(3)
	case "loses its device":
		return nil, fmt.Errorf("%w: CUDA error: unspecified launch failure", engine.ErrDevice)
	case "scores", "joins":
		return native.New(tiny, native.Options{MaxBatch: 4, Seed: 1})
	case "diverges":
		return nil, fmt.Errorf("%w at step 7", train.ErrDiverged)
	}
	select {}
}

type crashing struct{ device.Source }

func (crashing) Scan() (device.Machine, error) {
	_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
	select {}
}

// as makes the command of a child that plays a role.
func as(r string) func() *exec.Cmd {
	return func() *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), role+"="+r)
		return c
	}
}

// task is one that a child can begin.
func task(t *testing.T) train.Task {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.bin")
	w, err := train.CreateCorpus(path)
	if err != nil {
		t.Fatal(err)
	}
	w.Begin()
	if err := w.Add(make([]int32, 100), true, 100); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return train.Task{
		Trial: "t0", Dir: t.TempDir(), TrainPath: path, ValidPath: path, Threads: 1,
		Config: train.Config{Arch: tiny, BatchTokens: 32},
	}
}

var tiny = glm.Arch{Vocab: 8, Dim: 8, Layers: 1, Heads: 1, KVHeads: 1, FFN: 8, Context: 8}.WithDefaults()

// A child scores a checkpoint as this process does.
func TestScoreInAChild(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	m, err := native.New(tiny, native.Options{MaxBatch: 4, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	job := task(t)
	params := t.TempDir()
	if err := train.SaveCheckpoint(params, m.State(), train.State{Step: 3}); err != nil {
		t.Fatal(err)
	}
	corpus, err := train.OpenCorpus(job.TrainPath)
	if err != nil {
		t.Fatal(err)
	}
	defer corpus.Close()
	want, err := train.Sliding(t.Context(), m, corpus, tiny.Context, 4, train.Share{})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHost(Config{Command: as("scores")})
	defer h.Close()
	s := Scoring{Config: job.Config, Params: params, Corpus: job.TrainPath, Windows: 8, Threads: 1}
	if got, err := h.Score(t.Context(), s); err != nil || got != want || got.Tokens == 0 {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	s.Params = "/nowhere"
	if _, err := h.Score(t.Context(), s); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no checkpoint: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	released := errors.New("released")
	cancel(released)
	if _, err := h.Score(ctx, s); !errors.Is(err, released) {
		t.Errorf("given up: %v", err)
	}
}

// However a child dies, its rank is lost, the error says why with its last words,
// and the next piece of work has a new child.
func TestChildThatDies(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	for r, want := range map[string]string{
		"panics": "index out of range", "aborts": "c10::Error", "is killed": "signal 9", "exits": "exit status 3",
		"stops": "has not answered", "loses its device": "unspecified launch failure",
	} {
		t.Run(r, func(t *testing.T) {
			t.Parallel()
			h := NewHost(Config{Command: as(r), Ping: 20 * time.Millisecond})
			defer h.Close()
			_, err := h.Train(t.Context(), &actors.Assign{World: 1, Task: task(t)}, On{}, nil)
			if !errors.Is(err, ring.ErrLost) || !strings.Contains(err.Error(), want) {
				t.Fatalf("%v", err)
			}
			if f, err := h.Facts(t.Context()); err != nil || f.CUDA != 1 {
				t.Errorf("the next child: %+v, %v", f, err)
			}
		})
	}
}

// Children that compute on GPUs sum between those, each on the one that it sees,
// and all others in host memory.
func TestRingOfGPUs(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	job := task(t)
	job.Segment = train.Segment{Steps: 2}
	job.ByteLens = slices.Repeat([]int{1}, tiny.Vocab)
	for _, c := range []struct {
		backend string
		cuda    [2]bool
		visible string
		want    string // "": it trains
	}{
		{ring.Auto, [2]bool{true, true}, "GPU-1", "NCCL on GPU 0"},
		{ring.NCCL, [2]bool{true, true}, "GPU-1", "NCCL on GPU 0"},
		{ring.Auto, [2]bool{true, false}, "GPU-1", ""},
		{ring.NCCL, [2]bool{true, false}, "GPU-1", "rank 1 has none"},
		{ring.Auto, [2]bool{true, true}, "MIG-1", ""}, // slices of one GPU, which NCCL refuses
		{ring.NCCL, [2]bool{true, true}, "MIG-1", "NCCL on GPU 0"},
	} {
		group := ring.NewGroup(2, 1)
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for r := range errs {
			mine := job
			mine.Dir, mine.Backend = t.TempDir(), c.backend
			h := NewHost(Config{Command: as("joins"), Env: []string{"CUDA_VISIBLE_DEVICES=" + c.visible}})
			defer h.Close()
			wg.Go(func() {
				a := &actors.Assign{Epoch: 1, Rank: r, World: 2, Ring: group, Task: mine}
				_, errs[r] = h.Train(t.Context(), a, On{CUDA: c.cuda[r]}, func(train.StepMetrics) {})
			})
		}
		wg.Wait()
		for r, err := range errs {
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s, %s, CUDA %v, rank %d: %v, want %q", c.backend, c.visible, c.cuda, r, err, c.want)
			}
		}
	}
}

// What a job says of its ring is what the ring is told.
func TestSeatInARing(t *testing.T) {
	for _, plain := range []bool{false, true} {
		cfg := seat{1, 2, 5}.ring(&trainMsg{Task: train.Task{Backend: ring.NCCL, Plaintext: plain}, On: On{CUDA: true}})
		if cfg.Rank != 1 || cfg.World != 2 || cfg.Epoch != 5 || cfg.Backend != ring.NCCL || cfg.PlaintextCollectives != plain || cfg.GPU == nil {
			t.Errorf("%+v", cfg)
		}
	}
}

// What is the task's fault stays an error of the task, and the child stays.
func TestErrorOfTheTask(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	h := NewHost(Config{Command: as("diverges")})
	defer h.Close()
	_, err := h.Train(t.Context(), &actors.Assign{World: 1, Task: task(t)}, On{}, nil)
	if !errors.Is(err, train.ErrDiverged) || errors.Is(err, ring.ErrLost) {
		t.Errorf("%v", err)
	}
	pid := h.PID()
	if rates, err := h.Time(t.Context(), Timing{}); rates.Product != 42 || err != nil || h.PID() != pid {
		t.Errorf("%v, %v, child %d where %d was", rates, err, h.PID(), pid)
	}
	mine := task(t)
	mine.TrainPath = "/nowhere"
	if _, err := h.Train(t.Context(), &actors.Assign{World: 1, Task: mine}, On{}, nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a corpus that is not there: %v", err)
	}
}

// A child that hangs in its engine is killed when its run is given up.
func TestKillFreesTheCaller(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	h := NewHost(Config{Command: as("hangs")})
	defer h.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	released := errors.New("released")
	ended := make(chan error, 1)
	go func() {
		_, err := h.Train(ctx, &actors.Assign{World: 1, Task: task(t)}, On{}, nil)
		ended <- err
	}()
	for h.PID() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel(released)
	h.Kill(errors.New("the device is sick"))
	if err := <-ended; !errors.Is(err, released) && !strings.Contains(err.Error(), "sick") {
		t.Error(err)
	}
}

func TestChildThatNeverBegins(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	for r, want := range map[string]string{"dumb": "cannot open shared object", "babble": "makes no sense"} {
		h := NewHost(Config{Command: as(r)})
		if _, err := h.Facts(t.Context()); err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ring.ErrLost) {
			t.Errorf("%s: %v", r, err)
		}
		h.Close()
	}
	h := NewHost(Config{Command: func() *exec.Cmd { return exec.Command("/nowhere/autoglm") }})
	defer h.Close()
	if _, err := h.Facts(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

// A node that is killed takes its children along.
func TestChildDiesWithItsHost(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	c := as("host")()
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the child %d: %v", pid, err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	for end := time.Now().Add(10 * time.Second); computes(pid); {
		if time.Now().After(end) {
			t.Fatalf("process %d outlives its host", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

// computes tells whether a process computes: one that nobody has waited for yet
// does not.
func computes(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z")
}

// GPUs are seen through a child as its own source sees them, and a crash of the
// driver's library costs the child alone.
func TestSourceInAChild(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	s := NewSource(NewHost(Config{Command: as("looks")}), devicetest.New(0))
	devicetest.Conform(t, s)
	m, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := devicetest.New(8).Scan(); fmt.Sprint(m.Links) != fmt.Sprint(want.Links) || m.Devices[3].Bus != want.Devices[3].Bus {
		t.Errorf("%+v", m)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = NewSource(NewHost(Config{Command: as("crashing driver")}), devicetest.New(2))
	defer s.Close()
	if m, err = s.Scan(); err != nil || len(m.Devices) != 2 || !strings.Contains(strings.Join(m.Notes, " "), "SIGSEGV") && !strings.Contains(strings.Join(m.Notes, " "), "segmentation") {
		t.Errorf("after a crash: %d devices, %q, %v", len(m.Devices), m.Notes, err)
	}
}

func TestLastWords(t *testing.T) {
	var l lastWords
	for i := range 1000 {
		fmt.Fprintf(&l, "line %d\n", i)
	}
	if s := l.String(); !strings.HasPrefix(s, "line 0\n") || !strings.HasSuffix(s, "line 999") || !strings.Contains(s, "\n…\n") || len(s) > headBytes+tailBytes+10 {
		t.Errorf("%q", s)
	}
}
