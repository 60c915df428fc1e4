package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"google.golang.org/grpc"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

// Protocol is what nodes speak on the port.
const Protocol = "autoglm-actors/1"

// Config of a Remote.
type Config struct {
	Port  *port.Port // not serving yet; its identity is this node's, and without one all is plaintext
	Addr  string     // host:port under which others reach the port; its own when empty
	Boot  uint64     // this node's boot number
	Kinds *Kinds     // what may come and go
	// Refused is told of what was turned down: connections of those who may not
	// speak, frames that no node of this version sends. From is the peer's address, or
	// where it dialled from before it said so. Calls overlap. May be nil.
	Refused func(from string, why error)
	// Broken is told of a peer whose connection broke, or that could not be reached,
	// as soon as that is seen. Calls overlap. May be nil.
	Broken func(life string, why error)
}

// Limits.
const (
	maxBatch    = 64       // messages of a frame
	maxFrame    = 4 << 20  // bytes of a frame: more than maxBatch times MaxMessage
	maxQueue    = 64 << 20 // bytes that wait for one peer
	maxID       = 512      // bytes of an actor's id
	connectTime = 3 * time.Second
	sulk        = 100 * time.Millisecond // after a peer could not be reached, until the next try
	closeTime   = time.Second            // to write what waits when closing
)

// Why a message was not sent.
var (
	ErrClosed  = errors.New("this node is closing")
	ErrUnknown = errors.New("no such actor there, or none whose answer can travel")
	ErrLost    = errors.New("the node is gone")
	errFull    = fmt.Errorf("%d MiB wait for that node already", maxQueue>>20)
	errForeign = errors.New("only actors of this node can be the sender")
	errSystem  = errors.New("does not travel: an actor is stopped by its own node alone")
)

// Remote is a node's link to the actors of others. All methods may be called from
// any goroutine.
type Remote struct {
	cfg    Config
	system *actor.ActorSystem
	self   string // this life's address
	grpc   *grpc.Server
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	asked  atomic.Uint64

	mu struct {
		sync.Mutex
		closed  bool
		peers   map[string]*peer     // by life
		streams map[string]*incoming // by the address without its boot number
		asks    map[string]*ask      // by the asker's id
	}
}

// Start makes a system's actors reachable through the port.
func Start(system *actor.ActorSystem, cfg Config) (*Remote, error) {
	if cfg.Addr == "" {
		if cfg.Port.Addr().IP.IsUnspecified() {
			return nil, fmt.Errorf("listening on all addresses (%s), others need to know one of them: give --advertise HOST:PORT", cfg.Port.Addr())
		}
		cfg.Addr = cfg.Port.Addr().String()
	}
	if _, _, _, err := parse(At(cfg.Addr, cfg.Boot)); err != nil {
		return nil, err
	}
	r := &Remote{cfg: cfg, system: system, self: At(cfg.Addr, cfg.Boot)}
	r.mu.peers, r.mu.streams, r.mu.asks = map[string]*peer{}, map[string]*incoming{}, map[string]*ask{}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	// Ids that the library makes up start anew with each life, at a place that no
	// other life knows.
	atomic.StoreUint64(&system.ProcessRegistry.SequenceID, rand.Uint64N(1<<40))
	r.asked.Store(rand.Uint64())
	system.ProcessRegistry.RegisterAddressResolver(func(*actor.PID) (actor.Process, bool) { return far{r}, true })
	system.ProcessRegistry.Address = r.self

	r.grpc = r.server()
	l := cfg.Port.Listener(Protocol, cert.Node)
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		_ = r.grpc.Serve(l) // until Close
	}()
	return r, nil
}

// Self is the address of this node's PIDs.
func (r *Remote) Self() string { return r.self }

// PID names an actor of a life.
func (r *Remote) PID(life, id string) *actor.PID { return actor.NewPID(life, id) }

// Send is a context's Send that tells when the message can't travel: the error is
// then all that comes of it. Nil says that it waits to be written, or that the
// actor is of this node.
func (r *Remote) Send(to *actor.PID, message any) error {
	if r.here(to) {
		r.system.Root.Send(to, message)
		return nil
	}
	return r.post(to, nil, message, nil)
}

func (r *Remote) here(pid *actor.PID) bool {
	return pid.Address == r.self || pid.Address == localAddress
}

// post encodes a message and queues it.
func (r *Remote) post(to *actor.PID, header actor.ReadonlyMessageHeader, message any, sender *actor.PID) error {
	l := letter{to: to, sender: sender, message: message}
	if len(to.Id) > maxID {
		return fmt.Errorf("%T to an actor whose id takes more than %d bytes", message, maxID)
	}
	if sender != nil && !r.here(sender) {
		return fmt.Errorf("%T: %w", message, errForeign)
	}
	if header != nil && header.Length() > 0 {
		l.header = header.ToMap()
	}
	if err := l.seal(r.cfg.Kinds); err != nil {
		return err
	}
	return r.queue(l)
}

// queue gives a letter to its peer.
func (r *Remote) queue(l letter) error {
	for {
		p, err := r.peer(l.to.Address)
		if err != nil {
			return err
		}
		if err := p.put(l); !errors.Is(err, errOver) {
			return err
		}
	}
}

// peer finds the peer of a life, or makes one, which then connects.
func (r *Remote) peer(life string) (*peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return nil, ErrClosed
	}
	p := r.mu.peers[life]
	if p != nil && !p.forgotten() {
		return p, nil
	}
	p, err := newPeer(r, life)
	if err != nil {
		return nil, err
	}
	r.mu.peers[life] = p
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		p.run()
	}()
	return p, nil
}

// Lost ends the connections to a life that the cluster has given up. What is sent
// there afterwards dials anew.
func (r *Remote) Lost(life string) {
	r.mu.Lock()
	p := r.mu.peers[life]
	var in *incoming
	for _, s := range r.mu.streams {
		if s.life == life {
			in = s
		}
	}
	r.mu.Unlock()
	if in != nil {
		in.hangUp()
	}
	if p != nil {
		p.end(ErrLost)
	}
}

// Close writes what waits, for a second at most, and makes dead letters of the
// rest. Nothing is sent or received afterwards.
func (r *Remote) Close() error {
	r.mu.Lock()
	r.mu.closed = true
	peers := make([]*peer, 0, len(r.mu.peers))
	for _, p := range r.mu.peers {
		peers = append(peers, p)
	}
	r.mu.Unlock()
	late := time.After(closeTime)
	for _, p := range peers {
		p.finish()
	}
	for _, p := range peers {
		select {
		case <-p.gone:
		case <-late:
			late = nil
		}
		if late == nil {
			break
		}
	}
	for _, p := range peers {
		p.end(ErrClosed)
	}
	r.cancel()
	r.grpc.Stop()
	r.wg.Wait()
	return nil
}

// failed ends what waited for an answer from a life.
func (r *Remote) failed(life string, why error) {
	r.mu.Lock()
	var asks []*ask
	for _, a := range r.mu.asks {
		if a.to.Address == life {
			asks = append(asks, a)
		}
	}
	r.mu.Unlock()
	for _, a := range asks {
		a.answer(nil, why)
	}
}

// dead makes a dead letter, which tells the sender.
func (r *Remote) dead(l letter) {
	if l.message == nil {
		return // the library's own word
	}
	r.system.EventStream.Publish(&actor.DeadLetterEvent{PID: l.to, Message: l.message, Sender: l.sender})
}

// terminated tells a watcher of this node.
func (r *Remote) terminated(watcher string, who *actor.PID, why actor.TerminatedReason) {
	if ref, ok := r.system.ProcessRegistry.GetLocal(watcher); ok {
		ref.SendSystemMessage(actor.NewPID(r.self, watcher), &actor.Terminated{Who: who, Why: why})
	}
}

func (r *Remote) refused(from string, why error) {
	if r.cfg.Refused != nil {
		r.cfg.Refused(from, why)
	}
}

func (r *Remote) warn(text string, to *actor.PID, err error) {
	r.system.Logger().Error(text, slog.String("to", to.GetAddress()+"/"+to.GetId()), slog.Any("error", err))
}

// far is what the library finds where an actor of another node would be.
type far struct{ r *Remote }

// SendUserMessage implements actor.Process.
func (f far) SendUserMessage(to *actor.PID, message any) {
	header, m, sender := actor.UnwrapEnvelope(message)
	if err := f.r.post(to, header, m, sender); err != nil {
		if _, told := m.(*actor.DeadLetterResponse); told {
			return // who would be told has gone
		}
		if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrLost) {
			f.r.warn("message not sent", to, err)
		}
		f.r.noAnswer(to)
		f.r.dead(letter{to: to, message: m, sender: sender})
	}
}

// SendSystemMessage implements actor.Process.
func (f far) SendSystemMessage(to *actor.PID, message any) {
	switch m := message.(type) {
	case *actor.Watch:
		f.r.watch(to, m)
	case *actor.Unwatch:
		f.r.unwatch(to, m)
	case *actor.Terminated:
		f.r.forget(to, m.Who)
		l := letter{to: to, typ: typeTerminated}
		if l.proto(&actor.Terminated{Who: f.r.own(m.Who), Why: m.Why}) == nil {
			_ = f.r.queue(l) // a watcher that is gone need not know
		}
	default:
		f.r.warn("message not sent", to, fmt.Errorf("%T: %w", message, errSystem))
		f.r.dead(letter{to: to, message: message})
	}
}

// Stop implements actor.Process.
func (f far) Stop(to *actor.PID) { f.SendSystemMessage(to, &actor.Stop{}) }

// own is the PID by which others know an actor of this node.
func (r *Remote) own(pid *actor.PID) *actor.PID { return actor.NewPID(r.self, pid.Id) }

func (r *Remote) watch(who *actor.PID, m *actor.Watch) {
	l := letter{to: who, typ: typeWatch}
	err := l.proto(&actor.Watch{Watcher: r.own(m.Watcher)})
	for err == nil {
		var p *peer
		if p, err = r.peer(who.Address); err == nil {
			if err = p.watch(m.Watcher.Id, who, l); errors.Is(err, errOver) {
				err = nil
				continue
			}
			if err == nil {
				return
			}
		}
	}
	r.terminated(m.Watcher.Id, who, actor.TerminatedReason_AddressTerminated)
}

func (r *Remote) unwatch(who *actor.PID, m *actor.Unwatch) {
	r.mu.Lock()
	p := r.mu.peers[who.Address]
	r.mu.Unlock()
	l := letter{to: who, typ: typeUnwatch}
	if p != nil && p.unwatch(m.Watcher.Id, who) && l.proto(&actor.Unwatch{Watcher: r.own(m.Watcher)}) == nil {
		_ = p.put(l)
	}
}
