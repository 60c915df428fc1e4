//go:build gpu

package mpi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

// rankEnv says how many cases a process that mpirun started takes.
const rankEnv = "AUTOGLM_MPI_CASES"

func TestMain(m *testing.M) {
	if ringtest.Child() {
		return
	}
	if n := os.Getenv(rankEnv); n != "" {
		if err := conform(n); err != nil {
			fmt.Println("end", err)
			os.Exit(3)
		}
		return
	}
	os.Exit(m.Run())
}

// conform is one rank of the conformance test.
func conform(n string) error {
	count, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	cfg, err := ring.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	cfg.Epoch, cfg.Backend, cfg.FormTimeout, cfg.Timeout, cfg.Suspect = 1, ring.MPI, 30*time.Second, 30*time.Second, 10*time.Second
	c, err := ring.Form(context.Background(), cfg)
	if err != nil {
		return err
	}
	for _, k := range ringtest.Cases(7, count, 300_000) {
		if err := ringtest.Run(c, k, ringtest.How{Loose: true}); err != nil {
			return err
		}
	}
	fmt.Println("conforms", c.Rank(), c.World(), c.Backend())
	if err := c.Close(); err != nil {
		return err
	}
	// A second ring in one process is refused, not tried.
	cfg.Epoch++
	if _, err := ring.Form(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "once a process") {
		return fmt.Errorf("a second ring: %w", err)
	}
	return nil
}

// launcher is an installation's mpirun; the test is left out where it has none.
func launcher(t *testing.T, family string, n int) []string {
	t.Helper()
	path, err := exec.LookPath("mpirun." + family)
	if err != nil {
		text := map[string]string{"openmpi": "openmpi-bin", "mpich": "mpich"}[family]
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatalf("install %s: %v", text, err)
		}
		t.Skipf("install %s: %v", text, err)
	}
	argv := []string{path, "-n", strconv.Itoa(n)}
	if family == "openmpi" {
		argv = append(argv, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
	}
	return argv
}

func command(t *testing.T, argv []string, env ...string) *exec.Cmd {
	t.Helper()
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], self, "-test.run=^$")...)
	cmd.Env = append(os.Environ(), append(env, fmt.Sprintf("MASTER_PORT=%d", port), "GOMAXPROCS=2")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // which it passes on
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func TestConformance(t *testing.T) {
	for _, family := range []string{"openmpi", "mpich"} {
		for _, world := range []int{2, 3} {
			t.Run(fmt.Sprint(family, " ", world), func(t *testing.T) {
				cases := 60
				if world == 3 && family == "mpich" {
					cases = 15 // its ranks spin, and there may be more of them than cores
				}
				cmd := command(t, launcher(t, family, world), rankEnv+"="+strconv.Itoa(cases))
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				for r := range world {
					if want := fmt.Sprintf("conforms %d %d mpi", r, world); !strings.Contains(string(out), want) {
						t.Errorf("no %q in %s", want, out)
					}
				}
			})
		}
	}
}

// A stopped rank ends the training of the others: they know who it is, that MPI
// can't go on, and mpirun ends them.
func TestLoss(t *testing.T) {
	for _, family := range []string{"openmpi", "mpich"} {
		t.Run(family, func(t *testing.T) {
			cmd := command(t, launcher(t, family, 2), "AUTOGLM_RING_CHILD=mpi")
			out := &lines{formed: make(chan int, 2)}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			pid := 0
			select {
			case pid = <-out.formed:
			case err := <-done:
				t.Fatalf("%v: %s", err, out.text())
			}
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			// mpirun waits for the stopped one as well.
			if !out.await("can't go on without a lost rank", 20*time.Second) {
				t.Errorf("%s", out.text())
			}
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			if err := <-done; err == nil {
				t.Error("mpirun says that all went well")
			}
			if text := out.text(); !strings.Contains(text, "rank 1 lost: no sign of life") || !strings.Contains(text, "from the last checkpoint") {
				t.Errorf("%s", text)
			}
		})
	}
}

func TestNotStarted(t *testing.T) {
	if _, err := open(func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), "start the ranks with mpirun") {
		t.Error(err)
	}
	env := map[string]string{"PMI_SIZE": "2", "AUTOGLM_MPI": "/nowhere/libmpi.so"}
	if _, err := open(func(k string) string { return env[k] }); err == nil || !strings.Contains(err.Error(), "install openmpi-bin or mpich") {
		t.Error(err)
	}
	if err := ring.Available(ring.MPI); !errors.Is(err, ring.ErrUnavailable) {
		t.Error(err)
	}
}
