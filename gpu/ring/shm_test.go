package ring

import (
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const noMemory = "AUTOGLM_TEST_NO_MEMORY"

// A host that has no more memory to share says so, and leaves no file behind. The
// limit on a file's size stands for the lack: a memfd is held to it as well.
func TestNoMemoryToShare(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	if os.Getenv(noMemory) == "" {
		before, err := os.ReadDir("/dev/shm")
		if err != nil {
			t.Skip(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestNoMemoryToShare$", "-test.v")
		cmd.Env = append(os.Environ(), noMemory+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "choose the unix or tcp transport") {
			t.Fatalf("%v: %s", err, out)
		}
		after, err := os.ReadDir("/dev/shm")
		if err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for _, f := range before {
			known[f.Name()] = true
		}
		for _, f := range after {
			if !known[f.Name()] && strings.Contains(f.Name(), "autoglm") {
				t.Errorf("%s is left in /dev/shm", f.Name())
			}
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 64 << 10, Max: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	g := NewGroupOver(SHM, 2, 1)
	var wg sync.WaitGroup
	for r := range 2 {
		wg.Go(func() {
			c, err := g.Join(t.Context(), r)
			if err == nil {
				c.Close()
				t.Errorf("rank %d joins without memory", r)
				return
			}
			t.Log(err)
		})
	}
	wg.Wait()
}
