package native

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// task names what every member of a team does next.
type task int

// team is a fixed set of goroutines that run one task together. Member 0 is the
// caller; the others park on their channels between tasks and never spin, so
// that they leave the cores to whoever else has work. Owned by the goroutine
// that calls run and close.
type team struct {
	work  func(t task, member int)
	start []chan task // of members 1 …
	ended sync.WaitGroup
	done  sync.WaitGroup
	errs  []error
}

func newTeam(n int, work func(t task, member int)) *team {
	tm := &team{work: work, errs: make([]error, n)}
	for i := 1; i < n; i++ {
		c := make(chan task, 1)
		tm.start = append(tm.start, c)
		tm.ended.Go(func() {
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
