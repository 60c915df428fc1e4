// Package driver is what a person's terminal holds on to: it starts a job on a
// node, follows it, and interrupts it.
//
//	err := driver.Run(ctx, node.Options{Dir: "run1", Spec: spec}, view)
//
// A View is called from one goroutine and may be slow: journal events wait for
// it in order, of progress only the newest is kept. The job never waits for a
// view.
package driver

import (
	"context"
	"sync"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// Update is a committed event and what the job has come to.
type Update struct {
	Event journal.Event
	Board journal.Leaderboard
	State journal.State // its maps belong to the job: read Spec, Plan, Orders, Active, Winner and Score only
}

// View shows a job. Calls come from one goroutine.
type View interface {
	Update(u Update)
	Progress(p actors.Progress)
	Notice(text string) // what the job outlived
}

// Run opens the folder, carries the job out and shows it. Before runs between
// the two and may be nil. Errors are those of node.Open and Node.Run.
func Run(ctx context.Context, o node.Options, before func(*node.Node) error, v View) error {
	q := &queue{wake: make(chan struct{}, 1), progress: map[int]actors.Progress{}}
	o.Events = actors.Events{
		Journal: func(e journal.Event, st *journal.State) {
			if e.Kind == journal.Tick {
				return
			}
			q.push(Update{Event: e, Board: st.Leaderboard(o.Dir), State: *st})
		},
		Progress: q.pushProgress,
	}
	o.Notice = q.pushNotice
	n, err := node.Open(o)
	if err != nil {
		return err
	}
	if before != nil {
		if err := before(n); err != nil {
			n.Close()
			return err
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.drain(v)
	}()
	err = n.Run(ctx)
	q.close()
	<-done
	return err
}

// queue carries events from the job's mailbox to the view.
type queue struct {
	wake chan struct{}

	mu       sync.Mutex
	updates  []Update
	notices  []string
	progress map[int]actors.Progress // newest by decision
	closed   bool
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) push(u Update) {
	q.mu.Lock()
	q.updates = append(q.updates, u)
	q.mu.Unlock()
	q.signal()
}

func (q *queue) pushProgress(p actors.Progress) {
	q.mu.Lock()
	q.progress[p.Seq] = p
	q.mu.Unlock()
	q.signal()
}

func (q *queue) pushNotice(text string) {
	q.mu.Lock()
	q.notices = append(q.notices, text)
	q.mu.Unlock()
	q.signal()
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

func (q *queue) drain(v View) {
	for range q.wake {
		q.mu.Lock()
		updates, notices, progress, closed := q.updates, q.notices, q.progress, q.closed
		q.updates, q.notices, q.progress = nil, nil, map[int]actors.Progress{}
		q.mu.Unlock()
		for _, text := range notices {
			v.Notice(text)
		}
		for _, u := range updates {
			v.Update(u)
		}
		for _, p := range progress {
			v.Progress(p)
		}
		if closed {
			return
		}
	}
}
