//go:build libtorch

package gloo

import (
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

func TestMain(m *testing.M) {
	if ringtest.Child() {
		return
	}
	goleak.VerifyTestMain(m)
}

func need(t *testing.T) {
	t.Helper()
	if err := ring.Available(ring.Gloo); err != nil {
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestConformance(t *testing.T) {
	need(t)
	for world := 2; world <= 4; world++ {
		comms := make([]*ring.Comm, world)
		meet := &ring.Meeting{}
		all := func(f func(r int) error) {
			t.Helper()
			errs := make([]error, world)
			var wg sync.WaitGroup
			for r := range world {
				wg.Go(func() { errs[r] = f(r) })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		}
		all(func(r int) (err error) {
			comms[r], err = ring.Form(t.Context(), ring.Config{
				Rank: r, World: world, Epoch: 1, Backend: ring.Gloo, Rendezvous: meet, Timeout: 30 * time.Second, FormTimeout: 30 * time.Second, Suspect: 10 * time.Second,
			})
			return err
		})
		for _, k := range ringtest.Cases(uint64(world), 30, 300_000) {
			all(func(r int) error { return ringtest.Run(comms[r], k, ringtest.How{Loose: true}) })
		}
		all(func(r int) error { return comms[r].Close() })
	}
}

// A killed rank ends the training of the others, who know which one it was.
func TestLoss(t *testing.T) {
	need(t)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(signal.String(), func(t *testing.T) {
			procs := ringtest.Start(t, ring.Gloo, 3)
			for _, p := range procs {
				p.Await(t, "step")
			}
			at := time.Now()
			if err := procs[1].Cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			for _, p := range []*ringtest.Proc{procs[0], procs[2]} {
				f := p.Await(t, "lost")
				if known := ringtest.Nanos(t, f[2]).Sub(at); f[1] != "1" || known > time.Second {
					t.Errorf("lost rank %s after %s", f[1], known)
				}
				if line := strings.Join(p.Await(t, "end"), " "); !strings.Contains(line, "can't go on without a lost rank") {
					t.Error(line)
				}
			}
		})
	}
}

func TestMissing(t *testing.T) {
	for path, want := range map[string]string{"/nowhere/libautoglm-gloo.so": "autoglm libtorch fit", "libc.so.6": "of another autoglm"} {
		if _, err := open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
