package remote

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

// dial is a stranger's connection, who speaks the protocol and not the rules.
func dial(t testing.TB, id *cert.Identity, addr string) remote.RemotingClient {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return port.Dial(ctx, id, port.Call{Addr: addr, Protocol: Protocol})
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return remote.NewRemotingClient(cc)
}

func greeting(life string) *remote.RemoteMessage {
	return &remote.RemoteMessage{MessageType: &remote.RemoteMessage_ConnectRequest{ConnectRequest: &remote.ConnectRequest{
		ConnectionType: &remote.ConnectRequest_ServerConnection{ServerConnection: &remote.ServerConnection{SystemId: "x", Address: life}},
	}}}
}

// say opens a stream, sends frames until one fails, and returns what the other
// side makes of them.
func say(t testing.TB, c remote.RemotingClient, frames ...*remote.RemoteMessage) error {
	t.Helper()
	s, err := c.Receive(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if s.Send(f) != nil {
			break
		}
	}
	_ = s.CloseSend()
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}

const strangerLife = "127.0.0.1:9#4"

// good is a batch that is as it should be.
func good(t testing.TB, s *site) *remote.MessageBatch {
	t.Helper()
	l := letter{to: s.PID(s.Self(), "sink"), sender: actor.NewPID(strangerLife, "me"), message: &word{N: 1}}
	if err := l.seal(kinds()); err != nil {
		t.Fatal(err)
	}
	return frame([]letter{l}, strangerLife).GetMessageBatch()
}

func batch(b *remote.MessageBatch) *remote.RemoteMessage {
	return &remote.RemoteMessage{MessageType: &remote.RemoteMessage_MessageBatch{MessageBatch: b}}
}

func envelope(t testing.TB, number uint32, body []byte) []byte {
	t.Helper()
	b, err := seal(number, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hostile frames, each with what is said of it. Those that go on are messages that
// are refused alone.
var hostile = []struct {
	name, why string
	goesOn    bool
	change    func(t testing.TB, s *site, b *remote.MessageBatch) *remote.RemoteMessage
}{
	{"no type", "where messages are due", false, func(testing.TB, *site, *remote.MessageBatch) *remote.RemoteMessage { return &remote.RemoteMessage{} }},
	{"a second greeting", "where messages are due", false, func(testing.TB, *site, *remote.MessageBatch) *remote.RemoteMessage { return greeting(strangerLife) }},
	{"unknown type", "nodes don't exchange", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames = []string{"no.such.Type"}
		return nil
	}},
	{"a type of the library's", "nodes don't exchange", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames = []string{"actor.PoisonPill"}
		return nil
	}},
	{"stop", "nodes don't exchange", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames = []string{"actor.Stop"}
		return nil
	}},
	{"activation", "nodes don't exchange", false, func(t testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames, b.Targets[0].Id = []string{"remote.ActorPidRequest"}, "activator"
		b.Envelopes[0].MessageData, _ = proto.Marshal(&remote.ActorPidRequest{Kind: "x"})
		return nil
	}},
	{"serializer", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].SerializerId = 7
		return nil
	}},
	{"serializer below", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].SerializerId = -1
		return nil
	}},
	{"type index", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].TypeId = 5
		return nil
	}},
	{"type index below", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].TypeId = -1
		return nil
	}},
	{"target index", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].Target = 1
		return nil
	}},
	{"sender index", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].Sender = 2
		return nil
	}},
	{"sender index below", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].Sender = -1
		return nil
	}},
	{"request id", "outside of itself", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].TargetRequestId = 1
		return nil
	}},
	{"too many", "a batch of 65 messages", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		for len(b.Envelopes) <= maxBatch {
			b.Envelopes = append(b.Envelopes, b.Envelopes[0])
		}
		return nil
	}},
	{"too large a frame", "larger than max", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = make([]byte, maxFrame)
		return nil
	}},
	{"another's actor as sender", "speaks for an actor of another", false, func(_ testing.TB, s *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Senders[0].Address = s.Self()
		return nil
	}},
	{"another's actor as watcher", "speaks for an actor of another", false, func(_ testing.TB, s *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames = []string{"actor.Watch"}
		b.Envelopes[0].MessageData, _ = proto.Marshal(&actor.Watch{Watcher: actor.NewPID("127.0.0.1:10#4", "x")})
		return nil
	}},
	{"nobody as watcher", "speaks for an actor of another", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames = []string{"actor.Unwatch"}
		b.Envelopes[0].MessageData = nil
		return nil
	}},
	{"another's end", "speaks for an actor of another", false, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.TypeNames = []string{"actor.Terminated"}
		b.Envelopes[0].MessageData, _ = proto.Marshal(&actor.Terminated{Who: actor.NewPID("127.0.0.1:10#4", "x")})
		return nil
	}},
	{"for an earlier life", "not this node's life", true, func(_ testing.TB, s *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Targets[0].Address = At(s.port.Addr().String(), 0)
		return nil
	}},
	{"for another node", "not this node's life", true, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Targets[0].Address = strangerLife
		return nil
	}},
	{"for an address that is always local", "not this node's life", true, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Targets[0].Address = localAddress
		return nil
	}},
	{"to no actor", "which is no actor", true, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Targets[0].Id = "deadletter"
		return nil
	}},
	{"no envelope", "envelope of version 0", true, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = nil
		return nil
	}},
	{"a later envelope", "envelope of version 2", true, func(_ testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = []byte{0x08, 2, 0x10, 1}
		return nil
	}},
	{"unknown kind", "kind 77, which is not registered", true, func(t testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = envelope(t, 77, []byte{0x80})
		return nil
	}},
	{"another shape", "remote.word", true, func(t testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = envelope(t, 1, []byte{0x81, 0xa1, 'N', 0xa1, 'x'})
		return nil
	}},
	{"endless nesting", "deep", true, func(t testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = envelope(t, 1, []byte(strings.Repeat("\x91", 1000)))
		return nil
	}},
	{"a length of 4 GiB", "larger than what follows", true, func(t testing.TB, _ *site, b *remote.MessageBatch) *remote.RemoteMessage {
		b.Envelopes[0].MessageData = envelope(t, 1, binary.BigEndian.AppendUint32([]byte{0xdd}, 1<<32-1))
		return nil
	}},
}

// One frame, whatever it holds, ends no more than the connection that it came on.
func TestHostileFrame(t *testing.T) {
	s, other := start(t, nil, "", 1), start(t, nil, "", 1)
	for i, h := range hostile {
		t.Run(h.name, func(t *testing.T) {
			b := good(t, s)
			f := h.change(t, s, b)
			if f == nil {
				f = batch(b)
			}
			last := good(t, s)
			life := fmt.Sprintf("127.0.0.1:9#%d", i+4)
			last.Senders[0].Address = life
			for _, p := range b.Senders {
				if p.Address == strangerLife {
					p.Address = life
				}
			}
			heard := len(s.heard.get())
			err := say(t, dial(t, nil, s.port.Addr().String()), greeting(life), f, batch(last))
			s.refuse.until(t, h.why, func(all []error) bool { return len(all) > i && holds(h.why)(all[i:]) })
			if h.goesOn {
				s.heard.until(t, "the message behind it", count[any](heard+1))
			} else if err == nil || strings.Contains(err.Error(), "EOF") {
				t.Errorf("the stream ends with %v", err)
			}
			if got := len(s.heard.get()) - heard; h.goesOn != (got == 1) {
				t.Errorf("%d messages were delivered", got)
			}
			if _, err := other.Ask(within(t, 10*time.Second), other.PID(s.Self(), "echo"), &question{}); err != nil {
				t.Fatalf("the node afterwards: %v", err)
			}
		})
	}
	if n := len(s.refuse.get()); n != len(hostile) {
		t.Errorf("%d refusals of %d frames", n, len(hostile))
	}
}

func TestHostileGreeting(t *testing.T) {
	s := start(t, nil, "", 1)
	for i, c := range []struct {
		why string
		f   *remote.RemoteMessage
	}{
		{"not HOST:PORT#BOOT", &remote.RemoteMessage{}},
		{"not HOST:PORT#BOOT", greeting("")},
		{"not HOST:PORT#BOOT", greeting("127.0.0.1:9")},
		{"not HOST:PORT#BOOT", greeting("127.0.0.1:9#-1")},
		{"greeting of", greeting("127.0.0.1:9#007")},
		{"not HOST:PORT#BOOT", greeting(strings.Repeat("x", 1000) + ":9#1")},
		{"greeting of", greeting(s.Self())},
		{"not HOST:PORT#BOOT", batch(good(t, s))},
	} {
		if err := say(t, dial(t, nil, s.port.Addr().String()), c.f); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%v: %v", c.f, err)
		}
		s.refuse.until(t, c.why, func(all []error) bool { return len(all) > i && holds(c.why)(all[i:]) })
	}
}

// Calls of the library's service that nobody needs are refused.
func TestCalls(t *testing.T) {
	s := start(t, nil, "", 1)
	c := dial(t, nil, s.port.Addr().String())
	if _, err := c.ListProcesses(within(t, 10*time.Second), &remote.ListProcessesRequest{Pattern: "."}); err == nil {
		t.Error("ListProcesses was answered")
	}
	if _, err := c.GetProcessDiagnostics(within(t, 10*time.Second), &remote.GetProcessDiagnosticsRequest{}); err == nil {
		t.Error("GetProcessDiagnostics was answered")
	}
	s.refuse.until(t, "two refusals", func(all []error) bool { return len(all) == 2 && holds("a call other than")(all) })
}

// A peer speaks for the hosts of its certificate alone, as a node, under one
// authority.
func TestIdentities(t *testing.T) {
	make1 := issue(t)
	node := make1(cert.Request{Hosts: []string{"127.0.0.1"}})
	s := start(t, node, "", 1)
	addr := s.port.Addr().String()

	elsewhere := make1(cert.Request{Hosts: []string{"10.1.1.1"}})
	if err := say(t, dial(t, elsewhere, addr), greeting("127.0.0.1:9#1")); err == nil || !strings.Contains(err.Error(), "does not name") {
		t.Errorf("another's address: %v", err)
	}
	s.refuse.until(t, "the refusal", holds("does not name"))

	person := make1(cert.Request{Name: "ada", Role: cert.Submit})
	stranger := issue(t)(cert.Request{Hosts: []string{"127.0.0.1"}})
	for name, id := range map[string]*cert.Identity{"a person": person, "another authority's": stranger, "without TLS": nil} {
		c, err := port.Dial(within(t, 5*time.Second), id, port.Call{Addr: addr, Protocol: Protocol})
		if err != nil {
			continue // refused in the handshake
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: %d bytes came", name, n)
		}
		c.Close()
	}
	// The same of those who are dialled: nothing is sent to them.
	for name, other := range map[string]*site{"another authority's": start(t, stranger, "", 1), "without TLS": start(t, nil, "", 1)} {
		ends := s.watcher(t, s.PID(other.Self(), "echo"))
		ends.until(t, name, count[*actor.Terminated](1))
		if _, err := s.Ask(within(t, 5*time.Second), s.PID(other.Self(), "echo"), &question{}); err == nil {
			t.Errorf("%s answered", name)
		}
	}
}

// Whatever an authenticated peer sends as a frame, the node lives.
func FuzzFrame(f *testing.F) {
	s := start(f, nil, "", 1)
	for _, h := range hostile {
		if h.name == "too large a frame" || h.name == "too many" {
			continue
		}
		b := good(f, s)
		m := h.change(f, s, b)
		if m == nil {
			m = batch(b)
		}
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	in := &incoming{r: s.Remote, life: strangerLife, pids: map[string]*actor.PID{}}
	in.mu.watches = map[watch]*actor.PID{}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m remote.RemoteMessage
		if proto.Unmarshal(raw, &m) != nil || m.GetMessageBatch() == nil {
			return
		}
		_ = in.batch(m.GetMessageBatch())
	})
}

// big has most shapes that a message can have.
type big struct {
	B  bool
	I  int64
	U  uint32
	F  float64
	S  string
	R  []byte
	L  []word
	M  map[string][]int
	P  *big
	A  *actor.PID
	T  time.Time
	D  time.Duration
	N4 [4]int8
}

// Whatever an envelope holds, decoding it ends, with an error or with a message
// that can be sent again.
func FuzzMessage(f *testing.F) {
	k := kinds()
	Register[big](k, 9)
	for _, m := range []any{
		&word{N: 3, Text: "x", From: actor.NewPID("127.0.0.1:9#4", "a/b")},
		&big{B: true, I: -5, U: 7, F: 1.5, S: "s", R: []byte{1}, L: []word{{N: 1}}, M: map[string][]int{"a": {1, 2}}, P: &big{}, T: time.Unix(1, 2), D: 3, N4: [4]int8{1, 2, 3, 4}},
	} {
		b, err := k.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x08, 1, 0x10, 9, 0x1a, 2, 0x81, 0xa1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := k.Decode(b)
		if err != nil {
			return
		}
		again, err := k.Encode(m)
		if err != nil {
			t.Skip() // a PID of no address, or it grew
		}
		if _, err := k.Decode(again); err != nil {
			t.Fatalf("%x was read, and not what was written of it: %v", b, err)
		}
	})
}

// A node whose certificate is revoked while it speaks is gone at once, both ways.
func TestRevokedPeer(t *testing.T) {
	dir := t.TempDir()
	if err := cert.InitCA(dir + "/ca"); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(dir + "/ca")
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]*cert.Identity{}
	for _, name := range []string{"good", "bad"} {
		if err := ca.Issue(cert.Request{Name: name, Hosts: []string{"127.0.0.1"}}, dir+"/"+name); err != nil {
			t.Fatal(err)
		}
		if ids[name], err = cert.Load(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	a, b := start(t, ids["good"], "", 1), start(t, ids["bad"], "", 1)
	there, here := a.PID(b.Self(), "echo"), b.PID(a.Self(), "echo")
	ends, theirs := a.watcher(t, there), b.watcher(t, here)
	if _, err := a.Ask(within(t, 10*time.Second), there, &question{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ask(within(t, 10*time.Second), here, &question{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Revoke("bad"); err != nil {
		t.Fatal(err)
	}
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ids["good"].Revoke(list); err != nil {
		t.Fatal(err)
	}
	if n := a.port.CloseRevoked(); n != 2 {
		t.Errorf("%d connections were closed", n)
	}
	ends.until(t, "the end of the watch on it", count[*actor.Terminated](1))
	theirs.until(t, "the end of its own watch", count[*actor.Terminated](1))
	if _, err := a.Ask(within(t, 10*time.Second), there, &question{}); err == nil {
		t.Error("it was asked")
	}
	if _, err := b.Ask(within(t, 10*time.Second), here, &question{}); err == nil {
		t.Error("it was answered")
	}
}
