package remote

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/asynkron/protoactor-go/actor"
)

// ask is a question that waits for its answer: the sender of the question, known
// under an id that is used once.
type ask struct {
	to *actor.PID
	ch chan answer // buffered, 1: the first answer counts
}

const askPrefix = "ask$" // of askers' ids

type answer struct {
	message any
	err     error
}

func (a *ask) answer(message any, err error) {
	select {
	case a.ch <- answer{message, err}:
	default:
	}
}

// SendUserMessage implements actor.Process.
func (a *ask) SendUserMessage(_ *actor.PID, message any) {
	_, m, _ := actor.UnwrapEnvelope(message)
	if _, dead := m.(*actor.DeadLetterResponse); dead {
		a.answer(nil, ErrUnknown)
		return
	}
	a.answer(m, nil)
}

// SendSystemMessage implements actor.Process.
func (a *ask) SendSystemMessage(*actor.PID, any) {}

// Stop implements actor.Process.
func (a *ask) Stop(*actor.PID) {}

// Ask sends a question to an actor, here or elsewhere, and waits for what it
// answers with its context's Respond. An answer that comes after ctx has ended is
// dropped. The error is ErrUnknown where there is no such actor, or its answer was
// refused; ErrLost or another where its node was lost meanwhile. An actor that stops
// without a word is noticed by ctx alone. Ask waits, so it is not for an actor's
// Receive.
func (r *Remote) Ask(ctx context.Context, to *actor.PID, question any) (any, error) {
	a := &ask{to: to, ch: make(chan answer, 1)}
	id := askPrefix + strconv.FormatUint(r.asked.Add(1), 36)
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		return nil, ErrClosed
	}
	r.mu.asks[id] = a
	r.mu.Unlock()
	pid, _ := r.system.ProcessRegistry.Add(a, id)
	defer func() {
		r.system.ProcessRegistry.Remove(pid)
		r.mu.Lock()
		delete(r.mu.asks, id)
		r.mu.Unlock()
	}()
	if r.here(to) {
		r.system.Root.RequestWithCustomSender(to, question, pid)
	} else if err := r.post(to, nil, question, pid); err != nil {
		return nil, err
	}
	select {
	case got := <-a.ch:
		return got.message, got.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%T to %s/%s: %w", question, to.Address, to.Id, ctx.Err())
	case <-r.ctx.Done():
		return nil, ErrClosed
	}
}

// answered takes a message for an asker of this node, who hears only the node that
// it asked. It tells whether the message was for an asker at all.
func (r *Remote) answered(life, id string, m any) bool {
	if !strings.HasPrefix(id, askPrefix) {
		return false
	}
	r.mu.Lock()
	a := r.mu.asks[id]
	r.mu.Unlock()
	if a != nil && a.to.Address == life { // else too late
		a.answer(m, nil)
	}
	return true
}

// noAnswer tells an asker of another node that the answer to it was refused here.
func (r *Remote) noAnswer(to *actor.PID) {
	l := letter{to: to, typ: typeDead}
	if strings.HasPrefix(to.Id, askPrefix) && l.proto(&actor.DeadLetterResponse{}) == nil {
		_ = r.queue(l)
	}
}

// unanswered is the word that a question reached nobody.
func (r *Remote) unanswered(life, id string) {
	r.mu.Lock()
	a := r.mu.asks[id]
	r.mu.Unlock()
	if a != nil && a.to.Address == life {
		a.answer(nil, ErrUnknown)
	}
}
