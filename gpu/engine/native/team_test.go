package native

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// allowed are the processors that each thread of this process may run on, as the
// kernel prints them, by thread.
func allowed(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it ended meanwhile
		}
		_, rest, _ := strings.Cut(string(b), "Cpus_allowed_list:")
		line, _, _ := strings.Cut(rest, "\n")
		out[filepath.Base(filepath.Dir(f))] = strings.TrimSpace(line)
	}
	return out
}

// allocations counts those of each call to f: the fewest of ten rounds, since it is
// the process that is counted, and the threads and timers of its runtime allocate
// now and then.
func allocations(f func()) float64 {
	least := testing.AllocsPerRun(5, f)
	for n := 1; n < 10 && least > 0; n++ {
		least = min(least, testing.AllocsPerRun(5, f))
	}
	return least
}

// TestTeamPins: while they work all members are on the processors that they were
// given, the caller among them; after close no thread is left there.
func TestTeamPins(t *testing.T) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for n := range len(set) * 64 {
		if set.IsSet(n) {
			cpus = append(cpus, n)
		}
	}
	if len(cpus) < 2 {
		t.Skip("pinning to one of several processors needs two")
	}
	before := allowed(t)[fmt.Sprint(os.Getpid())]
	given := []int{cpus[1], cpus[0], cpus[1]}
	var mu sync.Mutex
	where := map[int]string{} // thread of each member
	tm := newTeam(len(given), given, func(_ task, i int) {
		mu.Lock()
		defer mu.Unlock()
		where[i] = fmt.Sprint(unix.Gettid())
		if at := allowed(t)[where[i]]; at != fmt.Sprint(given[i]) {
			t.Errorf("member %d may run on %s, not on %d alone", i, at, given[i])
		}
	})
	for range 3 {
		if err := tm.run(0); err != nil {
			t.Fatal(err)
		}
	}
	threads := allowed(t)
	for i, at := range given {
		if i == 0 {
			if now := threads[where[0]]; now != before {
				t.Errorf("between two tasks the caller may run on %s, before it was %s", now, before)
			}
		} else if threads[where[i]] != fmt.Sprint(at) {
			t.Errorf("member %d waits on %s, not on %d", i, threads[where[i]], at)
		}
	}
	tm.close()
	quiet := newTeam(2, cpus[:2], func(task, int) {})
	if n := allocations(func() { _ = quiet.run(0) }); n > 0 {
		t.Errorf("a task allocates %g times", n)
	}
	quiet.close()
	for thread, at := range allowed(t) {
		if at == fmt.Sprint(cpus[0]) || at == fmt.Sprint(cpus[1]) {
			t.Errorf("after close thread %s is left on %s", thread, at)
		}
	}
	// A processor that the process may not use leaves its thread where it may run.
	free := newTeam(2, []int{len(set)*64 - 1, len(set)*64 - 1}, func(_ task, i int) {
		if at := allowed(t)[fmt.Sprint(unix.Gettid())]; at != before {
			t.Errorf("refused, member %d may run on %s, want %s", i, at, before)
		}
	})
	defer free.close()
	if err := free.run(0); err != nil {
		t.Fatal(err)
	}
}

// TestTeamFlushes: while they work members take subnormal numbers for 0; after a task, and
// after one that panics, the caller does not.
func TestTeamFlushes(t *testing.T) {
	if kernel.Level() == "generic" {
		t.Skip("no assembly: nothing is flushed")
	}
	halved := func() float32 {
		x := []float32{0x1p-126}
		kernel.Scale(x, 0.5)
		return x[0]
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	seen := make([]float32, 3)
	tm := newTeam(len(seen), nil, func(panics task, i int) {
		seen[i] = halved()
		if panics > 0 {
			panic("of the test's own")
		}
	})
	defer tm.close()
	for panics := range 2 {
		if err := tm.run(task(panics)); (err != nil) != (panics > 0) {
			t.Fatal(err)
		}
		if seen[0] != 0 || seen[1] != 0 || seen[2] != 0 {
			t.Errorf("half of the smallest normal number is %v to the members, want 0", seen)
		}
		if halved() == 0 {
			t.Error("after its task the caller is left flushing")
		}
	}
}
