package native

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// task names what every member of a team does next.
type task int

// team is a fixed set of goroutines that run one task together. Member 0 is the
// caller; the others park on their channels between tasks and never spin, so
// that they leave the cores to whoever else has work. Owned by the goroutine
// that calls run and close.
type team struct {
	work  func(t task, member int)
	cpus  []int       // each member's processor; nil leaves them to the kernel
	start []chan task // of members 1 …
	ended sync.WaitGroup
	done  sync.WaitGroup
	errs  []error
}

func newTeam(n int, cpus []int, work func(t task, member int)) *team {
	tm := &team{work: work, cpus: cpus, errs: make([]error, n)}
	for i := 1; i < n; i++ {
		c := make(chan task, 1)
		tm.start = append(tm.start, c)
		tm.ended.Go(func() {
			if cpus != nil {
				at := pin(cpus[i])
				defer at.release()
			}
			for t := range c {
				tm.member(t, i)
				tm.done.Done()
			}
		})
	}
	return tm
}

// run lets all members do t and waits for them. A member's panic becomes the
// error.
func (tm *team) run(t task) error {
	if tm.cpus != nil {
		at := pin(tm.cpus[0])
		defer at.release()
	}
	tm.done.Add(len(tm.start))
	for _, c := range tm.start {
		c <- t
	}
	tm.member(t, 0)
	tm.done.Wait()
	for i, err := range tm.errs {
		if err != nil {
			clear(tm.errs)
			return fmt.Errorf("native: thread %d: %w", i, err)
		}
	}
	return nil
}

func (tm *team) member(t task, i int) {
	defer func() {
		if p := recover(); p != nil {
			tm.errs[i] = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	at := kernel.Flush() // what is that small is lost in every sum, and slow
	defer at.End()
	tm.work(t, i)
}

// close ends the goroutines and waits for them.
func (tm *team) close() {
	for _, c := range tm.start {
		close(c)
	}
	tm.start = nil
	tm.ended.Wait()
}

// pinned is what a goroutine was before it was pinned.
type pinned struct {
	before unix.CPUSet
	err    error
}

// pin keeps the calling goroutine on a processor until release. Where the processor
// is no longer the process's the kernel refuses, and the goroutine's thread runs
// where it may.
func pin(cpu int) pinned {
	runtime.LockOSThread()
	var p pinned
	var set unix.CPUSet
	set.Set(cpu)
	if p.err = unix.SchedGetaffinity(0, &p.before); p.err == nil {
		p.err = unix.SchedSetaffinity(0, &set)
	}
	return p
}

func (p *pinned) release() {
	if p.err == nil {
		_ = unix.SchedSetaffinity(0, &p.before) // refused only if none of them is left to the process
	}
	runtime.UnlockOSThread()
}
