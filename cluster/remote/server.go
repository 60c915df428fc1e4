package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/open-autoglm/autoglm/cluster/cert"
)

// server is the receiving end.
type server struct {
	remote.UnimplementedRemotingServer
	r *Remote
}

var errCall = errors.New("a call other than remote.Remoting/Receive")

func (r *Remote) server() *grpc.Server {
	refuse := func(ctx context.Context) error {
		r.refused(whence(ctx), errCall)
		return status.Error(codes.Unimplemented, errCall.Error())
	}
	s := grpc.NewServer(
		grpc.Creds(handed{}),
		grpc.MaxRecvMsgSize(maxFrame), grpc.MaxSendMsgSize(64<<10), grpc.MaxConcurrentStreams(4), grpc.MaxHeaderListSize(8<<10), grpc.ConnectionTimeout(connectTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			return nil, refuse(ctx)
		}),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return refuse(s.Context()) }),
	)
	remote.RegisterRemotingServer(s, &server{r: r})
	return s
}

// handed gives gRPC the connections as the port has made them.
type handed struct{}

// who is at the other end of a connection.
type who struct {
	credentials.CommonAuthInfo
	conn net.Conn
}

// AuthType implements credentials.AuthInfo.
func (who) AuthType() string { return "port" }

// ServerHandshake implements credentials.TransportCredentials.
func (handed) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	level := credentials.NoSecurity
	if _, ok := c.(*tls.Conn); ok {
		level = credentials.PrivacyAndIntegrity
	}
	return c, who{credentials.CommonAuthInfo{SecurityLevel: level}, c}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (handed) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a server's alone")
}

// Info implements credentials.TransportCredentials.
func (handed) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "port"}
}

// Clone implements credentials.TransportCredentials.
func (h handed) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handed) OverrideServerName(string) error { return nil }

// whence is where a call was dialled from.
func whence(ctx context.Context) string {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// incoming is a stream of a life that dialled this node. Its fields belong to the
// stream's goroutine, after it was made.
type incoming struct {
	r    *Remote
	life string
	addr string
	boot uint64
	conn net.Conn
	done chan struct{}         // closed when nothing more of it will be delivered
	pids map[string]*actor.PID // of its actors, by id: each is resolved once
	once sync.Once

	mu struct {
		sync.Mutex
		watches map[watch]*actor.PID // that its actors hold on actors here, with the watcher
	}
}

// hangUp ends the stream, whose goroutine then cleans up.
func (in *incoming) hangUp() { in.once.Do(func() { in.conn.Close() }) }

// Receive implements remote.RemotingServer.
func (s *server) Receive(stream remote.Remoting_ReceiveServer) error {
	from := whence(stream.Context())
	err := s.receive(stream, &from)
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.Canceled, codes.Unavailable, codes.DeadlineExceeded:
		return err // the connection broke
	}
	s.r.refused(from, err)
	return status.Error(codes.InvalidArgument, err.Error())
}

func (s *server) receive(stream remote.Remoting_ReceiveServer, from *string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	in, err := s.accept(stream)
	if err != nil {
		return err
	}
	*from = in.life
	entered, err := s.r.enter(in, false)
	if err != nil {
		return err
	}
	defer func() {
		if entered {
			s.r.leave(in)
		}
	}()
	if err := stream.Send(&remote.RemoteMessage{MessageType: &remote.RemoteMessage_ConnectResponse{ConnectResponse: &remote.ConnectResponse{MemberId: s.r.self}}}); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b, ok := m.MessageType.(*remote.RemoteMessage_MessageBatch)
		if !ok {
			return fmt.Errorf("a frame of %T where messages are due", m.MessageType)
		}
		if !entered {
			if entered, err = s.r.enter(in, true); err != nil {
				return err
			}
		}
		if err := in.batch(b.MessageBatch); err != nil {
			return err
		}
	}
}

// accept reads who calls, and holds it against its certificate.
func (s *server) accept(stream remote.Remoting_ReceiveServer) (*incoming, error) {
	p, _ := grpcpeer.FromContext(stream.Context())
	w, ok := p.AuthInfo.(who)
	if !ok {
		return nil, errors.New("a connection that did not come through the port")
	}
	in := &incoming{r: s.r, conn: w.conn, done: make(chan struct{}), pids: map[string]*actor.PID{}}
	in.mu.watches = map[watch]*actor.PID{}
	late := time.AfterFunc(connectTime, in.hangUp)
	defer late.Stop()
	m, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it hung up before it said who it is")
	}
	if err != nil {
		return nil, err
	}
	in.life = m.GetConnectRequest().GetServerConnection().GetAddress()
	var host string
	if in.addr, host, in.boot, err = parse(in.life); err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	if At(in.addr, in.boot) != in.life || in.life == s.r.self {
		return nil, fmt.Errorf("greeting of %q", in.life)
	}
	if s.r.cfg.Port.Secure() {
		c, ok := w.conn.(*tls.Conn)
		if !ok {
			return nil, errors.New("a connection without TLS")
		}
		state := c.ConnectionState()
		if _, role := cert.PeerOf(state); role != cert.Node {
			return nil, fmt.Errorf("the certificate's role is %q, not node", role)
		}
		if err := state.PeerCertificates[0].VerifyHostname(host); err != nil {
			return nil, fmt.Errorf("it speaks as %s, which its certificate does not name: %w", in.life, err)
		}
	}
	return in, nil
}

// enter makes a stream the one of its address. A life ends those before it, all of whose
// messages are delivered before. A second stream of one life ends the first only where
// again says so, when it has something to say: one that looks for another life than it
// found here says nothing, and the first is the one in use.
func (r *Remote) enter(in *incoming, again bool) (bool, error) {
	for {
		r.mu.Lock()
		old := r.mu.streams[in.addr]
		if r.mu.closed {
			r.mu.Unlock()
			return false, status.Error(codes.Unavailable, ErrClosed.Error())
		}
		if old == nil {
			r.mu.streams[in.addr] = in
			r.wg.Add(1)
			r.mu.Unlock()
			return true, nil
		}
		r.mu.Unlock()
		switch {
		case old.boot > in.boot:
			return false, fmt.Errorf("a later life of it speaks already: %s", old.life)
		case old.boot == in.boot && !again:
			return false, nil
		}
		old.hangUp()
		if old.boot < in.boot {
			r.Lost(old.life)
		}
		<-old.done
	}
}

// leave takes it out again; the watches that it held are void.
func (r *Remote) leave(in *incoming) {
	defer r.wg.Done()
	in.mu.Lock()
	watches := in.mu.watches
	in.mu.watches = map[watch]*actor.PID{}
	in.mu.Unlock()
	for w, watcher := range watches {
		if ref, ok := r.system.ProcessRegistry.GetLocal(w.who); ok {
			ref.SendSystemMessage(actor.NewPID(r.self, w.who), &actor.Unwatch{Watcher: watcher})
		}
	}
	r.mu.Lock()
	delete(r.mu.streams, in.addr)
	r.mu.Unlock()
	close(in.done)
}

var (
	errBatch  = errors.New("a batch that points outside of itself")
	errType   = errors.New("a type of message that nodes don't exchange")
	errSpoken = errors.New("it speaks for an actor of another address")
)

// batch delivers a frame. An error is one that no node makes, and ends the stream;
// a message that this node does not understand is refused alone.
func (in *incoming) batch(b *remote.MessageBatch) error {
	if len(b.Envelopes) > maxBatch || len(b.TypeNames) > len(typeNames) || len(b.Targets) > maxBatch || len(b.Senders) > maxBatch {
		return fmt.Errorf("a batch of %d messages, %d types, %d receivers and %d senders", len(b.Envelopes), len(b.TypeNames), len(b.Targets), len(b.Senders))
	}
	for _, e := range b.Envelopes {
		if e == nil || e.Target < 0 || int(e.Target) >= len(b.Targets) || e.TypeId < 0 || int(e.TypeId) >= len(b.TypeNames) ||
			e.Sender < 0 || int(e.Sender) > len(b.Senders) || e.SerializerId != 0 || e.TargetRequestId != 0 || e.SenderRequestId != 0 {
			return errBatch
		}
		var sender *actor.PID
		if e.Sender > 0 {
			if sender = b.Senders[e.Sender-1]; sender.GetAddress() != in.life {
				return errSpoken
			}
		}
		to := b.Targets[e.Target]
		if to.GetAddress() != in.r.self {
			in.r.refused(in.life, fmt.Errorf("message to %q, which is not this node's life", to.GetAddress()))
			continue
		}
		if err := in.deliver(b.TypeNames[e.TypeId], to.Id, sender, e); err != nil {
			return err
		}
	}
	return nil
}

func (in *incoming) deliver(name, to string, sender *actor.PID, e *remote.MessageEnvelope) error {
	r := in.r
	switch name {
	case "autoglm.Envelope":
		m, err := r.cfg.Kinds.Decode(e.MessageData)
		if err != nil {
			r.refused(in.life, err)
			return nil
		}
		if r.answered(in.life, to, m) {
			return nil
		}
		ref, ok := r.system.ProcessRegistry.GetLocal(to)
		if _, isActor := ref.(*actor.ActorProcess); ok && !isActor {
			r.refused(in.life, fmt.Errorf("message to %s, which is no actor", to))
			return nil
		}
		var message any = m
		if sender != nil || e.MessageHeader != nil {
			message = &actor.MessageEnvelope{Header: e.MessageHeader.GetHeaderData(), Message: m, Sender: in.pid(sender)}
		}
		ref.SendUserMessage(actor.NewPID(r.self, to), message)
	case "actor.Watch":
		var m actor.Watch
		if err := proto.Unmarshal(e.MessageData, &m); err != nil || m.Watcher.GetAddress() != in.life {
			return errSpoken
		}
		in.watch(to, m.Watcher)
	case "actor.Unwatch":
		var m actor.Unwatch
		if err := proto.Unmarshal(e.MessageData, &m); err != nil || m.Watcher.GetAddress() != in.life {
			return errSpoken
		}
		in.unwatch(to, m.Watcher)
	case "actor.Terminated":
		var m actor.Terminated
		if err := proto.Unmarshal(e.MessageData, &m); err != nil || m.Who.GetAddress() != in.life {
			return errSpoken
		}
		r.mu.Lock()
		p := r.mu.peers[in.life]
		r.mu.Unlock()
		if p != nil && p.unwatch(to, m.Who) { // else it was taken back, or told already
			r.terminated(to, m.Who, m.Why)
		}
	case "actor.DeadLetterResponse":
		r.unanswered(in.life, to)
	default:
		return fmt.Errorf("%w: %q", errType, name)
	}
	return nil
}

// pid keeps one PID for each of the peer's actors that it names as senders.
func (in *incoming) pid(sender *actor.PID) *actor.PID {
	if sender == nil {
		return nil
	}
	p := in.pids[sender.Id]
	if p == nil {
		if len(in.pids) > 1000 {
			clear(in.pids)
		}
		p = actor.NewPID(sender.Address, sender.Id)
		in.pids[sender.Id] = p
	}
	return p
}

func (in *incoming) watch(to string, watcher *actor.PID) {
	registry := in.r.system.ProcessRegistry
	ref, ok := registry.GetLocal(to)
	if _, isActor := ref.(*actor.ActorProcess); !ok || !isActor {
		far{in.r}.SendSystemMessage(watcher, &actor.Terminated{Who: actor.NewPID(in.r.self, to), Why: actor.TerminatedReason_NotFound})
		return
	}
	in.mu.Lock()
	in.mu.watches[watch{watcher.Id, to}] = watcher
	in.mu.Unlock()
	ref.SendSystemMessage(actor.NewPID(in.r.self, to), &actor.Watch{Watcher: watcher})
}

// forget a watch that has come to its end.
func (r *Remote) forget(watcher, who *actor.PID) {
	addr, _, _ := strings.Cut(watcher.Address, "#")
	r.mu.Lock()
	in := r.mu.streams[addr]
	r.mu.Unlock()
	if in != nil {
		in.mu.Lock()
		delete(in.mu.watches, watch{watcher.Id, who.Id})
		in.mu.Unlock()
	}
}

func (in *incoming) unwatch(to string, watcher *actor.PID) {
	in.mu.Lock()
	delete(in.mu.watches, watch{watcher.Id, to})
	in.mu.Unlock()
	if ref, ok := in.r.system.ProcessRegistry.GetLocal(to); ok {
		ref.SendSystemMessage(actor.NewPID(in.r.self, to), &actor.Unwatch{Watcher: watcher})
	}
}
