package actors

import (
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// clerk enlists a node's workers with a Supervisor of another node, passes on what the
// node has to say, and sees whether that lives.
type clerk struct {
	supervisor  *actor.PID
	enlist      Enlist
	every       time.Duration
	heard, gone chan struct{}
	watching    bool
	words       words
	done        chan struct{}
}

// Say has a clerk tell the job's user something.
type Say struct{ Text string }

// EnlistProps makes the actor that enlists workers: heard gets a word with each answer,
// and gone is closed when the Supervisor has ended, its node is lost, or it has lost sight of
// the workers. Heard should have room for one.
func EnlistProps(supervisor *actor.PID, m Enlist, every time.Duration, heard, gone chan struct{}) *actor.Props {
	return actor.PropsFromProducer(func() actor.Actor {
		return &clerk{supervisor: supervisor, enlist: m, every: every, heard: heard, gone: gone}
	})
}

// Receive implements actor.Actor.
func (c *clerk) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		c.done = make(chan struct{})
		ctx.Send(ctx.Self(), &tick{})
		go ticking(ctx.ActorSystem().Root, ctx.Self(), c.every, c.done)
	case *tick:
		word := c.enlist
		word.From = ctx.Self()
		ctx.Send(c.supervisor, &word)
		c.tell(ctx)
	case *Say:
		c.words.say(m.Text)
		c.tell(ctx)
	case *Credit:
		c.words.credit(m.N)
		c.tell(ctx)
	case *Enlisted:
		if m.Lost {
			c.end()
			return
		}
		select {
		case c.heard <- struct{}{}:
		default:
		}
		if !c.watching {
			c.watching = true
			ctx.Watch(c.supervisor)
			c.tell(ctx)
		}
	case *actor.Terminated:
		c.end()
	case *actor.Stopping, *actor.Restarting:
		close(c.done)
	}
}

// tell sends what may be sent, once the Supervisor is there.
func (c *clerk) tell(ctx actor.Context) {
	for c.watching {
		n, text, ok := c.words.next(time.Now())
		if !ok {
			return
		}
		ctx.Send(c.supervisor, &Said{N: n, Text: text, From: ctx.Self()})
	}
}

func (c *clerk) end() {
	if c.gone != nil {
		close(c.gone)
		c.gone = nil
	}
}
