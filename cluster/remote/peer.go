package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/open-autoglm/autoglm/cluster/port"
)

// peer is one connection to another life: it dials, writes letters, and is over
// when the connection breaks. The next letter makes another peer.
type peer struct {
	r      *Remote
	life   string
	addr   string
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // buffered, 1: letters wait, or finish was called
	gone   chan struct{} // closed when run has returned

	mu struct {
		sync.Mutex
		letters []letter
		size    int // of their data
		watched map[watch]*actor.PID
		last    bool // nothing more is put
		over    bool
		retry   time.Time // when it is over: until then, the next one would fail too
	}
}

// watch of an actor of this node on one of the peer's, by their ids.
type watch struct{ watcher, who string }

// errOver means that the peer is over and another one may be made.
var errOver = errors.New("over")

func newPeer(r *Remote, life string) (*peer, error) {
	addr, _, _, err := parse(life)
	if err != nil {
		return nil, err
	}
	p := &peer{r: r, life: life, addr: addr, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	p.mu.watched = map[watch]*actor.PID{}
	p.ctx, p.cancel = context.WithCancelCause(r.ctx)
	return p, nil
}

// forgotten tells whether another peer may take its place.
func (p *peer) forgotten() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.over && !time.Now().Before(p.mu.retry)
}

// put queues a letter.
func (p *peer) put(l letter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.putLocked(l)
}

func (p *peer) putLocked(l letter) error {
	switch {
	case p.mu.over && time.Now().Before(p.mu.retry):
		return ErrLost
	case p.mu.over:
		return errOver
	case p.mu.last:
		return ErrClosed
	case p.mu.size+len(l.data) > maxQueue:
		return errFull
	}
	p.mu.letters = append(p.mu.letters, l)
	p.mu.size += len(l.data)
	p.nudge()
	return nil
}

func (p *peer) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// watch notes a watch and queues it.
func (p *peer) watch(watcher string, who *actor.PID, l letter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.putLocked(l); err != nil {
		return err
	}
	p.mu.watched[watch{watcher, who.Id}] = who
	return nil
}

// unwatch takes a watch back, and tells whether there was one.
func (p *peer) unwatch(watcher string, who *actor.PID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := watch{watcher, who.Id}
	_, ok := p.mu.watched[k]
	delete(p.mu.watched, k)
	return ok
}

// finish lets run write what waits and return.
func (p *peer) finish() {
	p.mu.Lock()
	p.mu.last = true
	p.mu.Unlock()
	p.nudge()
}

func (p *peer) finished() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.last
}

// end is the end of the connection, whoever sees it first: what waited becomes
// dead letters, and watchers are told.
func (p *peer) end(why error) {
	p.mu.Lock()
	if p.mu.over {
		p.mu.Unlock()
		return
	}
	p.mu.over = true
	letters, watched := p.mu.letters, p.mu.watched
	p.mu.letters, p.mu.watched = nil, nil
	if errors.As(why, new(*unreachableError)) {
		p.mu.retry = time.Now().Add(sulk)
	}
	p.mu.Unlock()
	p.cancel(why)
	for w, who := range watched {
		p.r.terminated(w.watcher, who, actor.TerminatedReason_AddressTerminated)
	}
	p.r.failed(p.life, fmt.Errorf("%s: %w", p.life, why)) // before the letters, which would tell less
	for _, l := range letters {
		p.r.dead(l)
	}
	if p.r.cfg.Broken != nil && !errors.Is(why, ErrClosed) && !errors.Is(why, ErrLost) {
		p.r.cfg.Broken(p.life, why)
	}
}

// unreachableError is a connection that never was.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// take waits for letters and takes a batch; none when nothing more will come.
func (p *peer) take() []letter {
	for {
		p.mu.Lock()
		n := min(len(p.mu.letters), maxBatch)
		batch := slices.Clone(p.mu.letters[:n])
		clear(p.mu.letters[:n])
		p.mu.letters = p.mu.letters[n:]
		for _, l := range batch {
			p.mu.size -= len(l.data)
		}
		done := p.mu.last || p.mu.over
		p.mu.Unlock()
		if n > 0 || done {
			return batch
		}
		select {
		case <-p.wake:
		case <-p.ctx.Done():
			return nil
		}
	}
}

// run is the peer's goroutine.
func (p *peer) run() {
	defer close(p.gone)
	if err := p.talk(); err != nil {
		p.end(err)
		return
	}
	p.end(ErrClosed)
}

// talk connects and writes until finish, or until the connection breaks.
func (p *peer) talk() error {
	raw, err := p.dial()
	if err != nil {
		return &unreachableError{err}
	}
	defer raw.Close() // also where gRPC has not come to take it
	cc, err := p.client(raw)
	if err != nil {
		return err
	}
	defer cc.Close()
	stream, err := p.greet(cc)
	if err != nil {
		return &unreachableError{err}
	}
	var read sync.WaitGroup
	defer read.Wait() // after the cancel below, which ends it
	defer p.cancel(ErrClosed)
	read.Go(func() {
		_, err := stream.Recv() // a peer says nothing more until it is through
		switch s, ok := status.FromError(err); {
		case err == nil:
			err = errors.New("it speaks where it should listen")
		case errors.Is(err, io.EOF) && p.finished():
			err = ErrClosed
		case errors.Is(err, io.EOF):
			err = errors.New("it hung up")
		case ok:
			err = errors.New(s.Message())
		}
		p.end(err)
	})
	for {
		batch := p.take()
		if len(batch) == 0 {
			break
		}
		if err := stream.Send(frame(batch, p.r.self)); err != nil {
			for _, l := range batch {
				p.r.dead(l)
			}
			<-p.ctx.Done() // the reader has the reason
			return context.Cause(p.ctx)
		}
	}
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	_ = stream.CloseSend()
	<-p.ctx.Done() // the other side has read all, or Close has waited long enough
	return nil
}

func (p *peer) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, connectTime)
	defer cancel()
	return p.r.cfg.Port.Dial(ctx, port.Call{Addr: p.addr, Protocol: Protocol})
}

// client speaks gRPC over one connection, and never makes another.
func (p *peer) client(raw net.Conn) (*grpc.ClientConn, error) {
	var used atomic.Bool
	return grpc.NewClient("passthrough:///"+p.addr,
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errOver
			}
			return raw, nil
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the port has done it
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(maxFrame), grpc.MaxCallRecvMsgSize(64<<10)),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
	)
}

// greet opens the stream, and sees whether it is the life that it looks for.
func (p *peer) greet(cc *grpc.ClientConn) (remote.Remoting_ReceiveClient, error) {
	late := time.AfterFunc(connectTime, func() { p.cancel(errors.New("it does not answer")) })
	defer late.Stop()
	stream, err := remote.NewRemotingClient(cc).Receive(p.ctx)
	if err != nil {
		return nil, p.cause(err)
	}
	_ = stream.Send(&remote.RemoteMessage{MessageType: &remote.RemoteMessage_ConnectRequest{ConnectRequest: &remote.ConnectRequest{
		ConnectionType: &remote.ConnectRequest_ServerConnection{ServerConnection: &remote.ServerConnection{SystemId: p.r.system.ID, Address: p.r.self}},
	}}}) // an error comes with Recv, and better
	m, err := stream.Recv()
	if err != nil {
		return nil, p.cause(err)
	}
	switch life := m.GetConnectResponse().GetMemberId(); life {
	case p.life:
		return stream, nil
	case "":
		return nil, errors.New("it answered the greeting with something else")
	default:
		return nil, fmt.Errorf("%w: %s lives there now", ErrLost, life)
	}
}

// cause is why p was cancelled, or else what err's status says.
func (p *peer) cause(err error) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	if s, ok := status.FromError(err); ok {
		return errors.New(s.Message())
	}
	return err
}
