package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is the time between two looks at how much memory the processes use.
const lookEvery = 100 * time.Millisecond

// process is one that runs.
type process struct {
	c          Config
	cmd        *exec.Cmd
	group      *group
	processors int    // it may run on so many; 0 is all
	watched    bool   // its memory is
	end        func() // kills what killing the group leaves; may be nil
}

// run starts the process, waits for its end or the context's, and leaves nothing.
func (p *process) run(ctx context.Context, log *log) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	exited, err := p.start()
	w.Close()
	if err != nil {
		r.Close()
		return fmt.Errorf("step %s %w: %w", p.c.Name, ErrStart, err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(log, r) // a log that can't be written is told by close
	}()
	why := p.wait(ctx, exited)
	p.kill()
	select {
	case <-read:
	case <-time.After(time.Second): // somebody that we may not kill holds the pipe
	}
	r.Close()
	<-read
	if err := log.close(); err != nil {
		return fmt.Errorf("step %s: %w", p.c.Name, err)
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	state := p.cmd.ProcessState
	if why == nil && state.Success() {
		return nil
	}
	return p.failure(why, state, log)
}

// failure says how the program ended.
func (p *process) failure(why error, state *os.ProcessState, log *log) error {
	var b strings.Builder
	fmt.Fprintf(&b, "step %s ", p.c.Name)
	ws, _ := state.Sys().(syscall.WaitStatus)
	switch {
	case why != nil:
		fmt.Fprintf(&b, "was ended: %v", why)
	case p.group.oom():
		fmt.Fprintf(&b, "was ended: it took more memory than its %s", size(p.c.Memory))
	case ws.Signaled():
		fmt.Fprintf(&b, "was killed by signal %d (%s)", int(ws.Signal()), ws.Signal())
	default:
		fmt.Fprintf(&b, "ended with exit code %d", state.ExitCode())
		if p.c.Image != "" && state.ExitCode() == 128+int(syscall.SIGKILL) {
			b.WriteString(" (killed: for its memory, as a rule)")
		}
	}
	if p.watched && why == nil {
		fmt.Fprintf(&b, " (its processes may allocate %s each)", size(p.c.Memory))
	}
	if last := log.last(); last != "" {
		b.WriteString("\n" + last)
	}
	return errors.New(b.String())
}

func size(n int64) string {
	if n%(1<<20) == 0 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}

// start starts the process; the channel is closed when it has ended.
func (p *process) start() (<-chan struct{}, error) {
	exited, begun := make(chan struct{}), make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, so that
		// thread waits for it. It also hands its processors down.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.within(p.cmd.Start)
		begun <- err
		if err == nil {
			_ = p.cmd.Wait() // its state says it all
		}
		close(exited)
	}()
	return exited, <-begun
}

// within calls f while this thread may run on as many processors as the step.
func (p *process) within(f func() error) error {
	var all unix.CPUSet
	if p.processors == 0 || unix.SchedGetaffinity(0, &all) != nil || all.Count() <= p.processors {
		return f()
	}
	var some unix.CPUSet
	for i, n := 0, p.processors; n > 0; i++ {
		if all.IsSet(i) {
			some.Set(i)
			n--
		}
	}
	if err := unix.SchedSetaffinity(0, &some); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &all) }() // it had them before
	return f()
}

// wait returns once the program has ended, with why it was made to, if it was for
// its memory. Where all were asked to end, it waits for all.
func (p *process) wait(ctx context.Context, exited <-chan struct{}) (why error) {
	var tick <-chan time.Time
	if p.watched {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		tick = t.C
	}
	done, late := ctx.Done(), (<-chan time.Time)(nil)
	for {
		select {
		case <-exited:
			if late == nil {
				return why
			}
			exited = nil
			t := time.NewTicker(lookEvery / 5)
			defer t.Stop()
			tick = t.C
		case <-done:
			done = nil
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
			p.group.signal(syscall.SIGTERM, p.cmd.Process.Pid)
			late = time.After(p.c.Grace)
		case <-late:
			if exited == nil {
				return why
			}
			late = nil
			p.kill()
		case <-tick:
			if exited == nil {
				if len(members(p.cmd.Process.Pid, p.c.marks()...)) == 0 {
					return why
				}
				continue
			}
			if used := p.memory(); used > p.c.Memory && why == nil {
				why = fmt.Errorf("its processes took %s of memory, and may take %s", size(used>>20<<20), size(p.c.Memory))
				p.kill()
			}
		}
	}
}

// kill leaves nothing of the step.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may be gone
	p.group.kill()
	sweep(p.c.marks()...)
	if p.end != nil {
		p.end()
	}
}
