package remote

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/cluster/port"
)

const childEnv = "AUTOGLM_REMOTE_TEST"

// child is a node in a process of its own, at the address and boot number of its
// environment, until its standard input ends.
func child() {
	listen, number, _ := strings.Cut(os.Getenv(childEnv), "#")
	boot, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		panic(err)
	}
	p, err := port.Listen(port.Config{Listen: listen})
	if err != nil {
		panic(err)
	}
	system := newSystem()
	r, err := Start(system, Config{Port: p, Boot: boot, Kinds: kinds()})
	if err != nil {
		panic(err)
	}
	for i := range 3 {
		_, err := system.Root.SpawnNamed(actor.PropsFromFunc(func(c actor.Context) {
			if q, ok := c.Message().(*question); ok {
				if q.N < 0 {
					time.Sleep(time.Duration(-q.N) * time.Millisecond) // an answer that comes late
				}
				c.Respond(&reply{N: q.N, Life: r.Self()})
			}
		}), fmt.Sprint("echo", i))
		if err != nil {
			panic(err)
		}
	}
	go p.Serve()
	fmt.Println(r.Self())
	_, _ = io.Copy(io.Discard, os.Stdin)
	r.Close()
}

// process is a child.
type process struct {
	*exec.Cmd
	life string
	in   io.Closer
}

func run(t testing.TB, listen string, boot uint64) *process {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s#%d", childEnv, listen, boot))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: c, in: in}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.life = strings.TrimSpace(line)
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// A process that is killed is known to be gone at once.
func TestKilledPeer(t *testing.T) {
	a, p := start(t, nil, "", 1), run(t, "127.0.0.1:0", 1)
	var who []*actor.PID
	for i := range 3 {
		who = append(who, a.PID(p.life, fmt.Sprint("echo", i)))
	}
	ends := a.watcher(t, who...)
	if _, err := a.Ask(within(t, 10*time.Second), who[0], &question{N: 1}); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() {
		_, err := a.Ask(within(t, 30*time.Second), who[1], &question{N: -20000})
		asked <- err
	}()
	if _, err := a.Ask(within(t, 10*time.Second), who[0], &question{N: 1}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, e := range ends.until(t, "all ends", count[*actor.Terminated](3)) {
		if e.Why != actor.TerminatedReason_AddressTerminated {
			t.Errorf("%+v", e)
		}
	}
	took := time.Since(begun)
	t.Logf("3 watched actors of a killed process: known to be gone after %v", took)
	if took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if err := <-asked; err == nil {
		t.Error("a killed process answered")
	}
	a.broken.until(t, "Broken", count[string](1))
	if n := len(ends.get()); n != 3 {
		t.Errorf("%d ends of 3 watches", n)
	}
}

// One that is stopped (SIGSTOP) is gone when the cluster says so, and one that
// nobody names by keepalive.
func TestStoppedPeer(t *testing.T) {
	a, p := start(t, nil, "", 1), run(t, "127.0.0.1:0", 1)
	ends := a.watcher(t, a.PID(p.life, "echo0"))
	if _, err := a.Ask(within(t, 10*time.Second), a.PID(p.life, "echo0"), &question{N: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	a.Lost(p.life)
	ends.until(t, "its end", count[*actor.Terminated](1))
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	// It lives after all, and can be spoken to again.
	if err := p.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Ask(within(t, 10*time.Second), a.PID(p.life, "echo0"), &question{N: 1}); err != nil {
		t.Fatal(err)
	}
}
