package remote

import (
	"errors"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/cluster/port"
)

// A node that starts again at its old address never gets what was meant for the
// life before: no answer to a question of that life, no message, no watch.
func TestRestartAtTheSameAddress(t *testing.T) {
	b := start(t, nil, "", 1)
	answer := make(chan struct{})
	asked := make(chan *actor.PID, 2)
	b.spawn(t, "slow", func(c actor.Context) {
		if q, ok := c.Message().(*question); ok {
			asked <- c.Sender()
			if q.N == 1 {
				<-answer
			}
			c.Respond(&reply{N: q.N})
		}
	})
	a1 := start(t, nil, "", 1)
	addr := a1.port.Addr().String()
	ends := b.watcher(t, b.PID(a1.Self(), "sink"))
	if err := b.Send(b.PID(a1.Self(), "sink"), &word{N: 1}); err != nil {
		t.Fatal(err)
	}
	a1.heard.until(t, "the first life's message", count[any](1))
	first := make(chan error, 1)
	go func() {
		_, err := a1.Ask(within(t, 10*time.Second), a1.PID(b.Self(), "slow"), &question{N: 1})
		first <- err
	}()
	old := <-asked
	a1.Close()
	a1.port.Close()
	if err := <-first; !errors.Is(err, ErrClosed) {
		t.Errorf("the first life's question: %v", err)
	}
	ends.until(t, "the first life's end", count[*actor.Terminated](1))

	a2 := start(t, nil, addr, 2)
	second := make(chan any, 1)
	go func() {
		got, err := a2.Ask(within(t, 10*time.Second), a2.PID(b.Self(), "slow"), &question{N: 2})
		if err != nil {
			t.Errorf("the second life's question: %v", err)
		}
		second <- got
	}()
	close(answer) // of the first question, before that of the second
	if r, ok := (<-second).(*reply); !ok || r.N != 2 {
		t.Errorf("the second question is answered with %+v", r)
	}
	if now := <-asked; now.Id == old.Id || now.Address == old.Address {
		t.Errorf("both lives ask as %s and %s", old, now)
	}
	b.dead.until(t, "the late answer among the dead letters", func(all []*actor.DeadLetterEvent) bool {
		for _, d := range all {
			if r, ok := d.Message.(*reply); ok && r.N == 1 {
				return true
			}
		}
		return false
	})
	if err := b.Send(b.PID(a1.Self(), "sink"), &word{N: 3}); err == nil {
		b.dead.until(t, "the old life's message", func(all []*actor.DeadLetterEvent) bool {
			return all[len(all)-1].PID.Address == a1.Self()
		})
	}
	if err := b.Send(b.PID(a2.Self(), "sink"), &word{N: 4}); err != nil {
		t.Fatal(err)
	}
	if got := a2.heard.until(t, "its own message", count[any](1)); len(got) != 1 || got[0].(*word).N != 4 {
		t.Errorf("the second life hears %+v", got)
	}
	late := b.watcher(t, b.PID(a1.Self(), "sink"))
	late.until(t, "the end of a watch of the first life", count[*actor.Terminated](1))
}

// Of the lives that speak from one address, the latest is heard.
func TestLivesTakeTurns(t *testing.T) {
	s := start(t, nil, "", 1)
	c := dial(t, nil, s.port.Addr().String())
	open := func(life string) (read func() error) {
		stream, err := c.Receive(within(t, 20*time.Second))
		if err == nil {
			err = stream.Send(greeting(life))
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() error { _, err := stream.Recv(); return err }
	}
	four := open("127.0.0.1:9#4")
	if err := four(); err != nil {
		t.Fatal(err)
	}
	c = dial(t, nil, s.port.Addr().String()) // a life has connections of its own
	five := open("127.0.0.1:9#5")
	if err := five(); err != nil {
		t.Fatal(err)
	}
	if err := four(); err == nil {
		t.Error("the earlier life still speaks")
	}
	again := open("127.0.0.1:9#4")
	if err := again(); err == nil || !strings.Contains(err.Error(), "a later life") {
		t.Errorf("the earlier life comes back: %v", err)
	}
}

// Made-up ids of two systems don't meet.
func TestIdsBeginAnywhere(t *testing.T) {
	seen := map[string]bool{"$1": true, "$2": true}
	for range 5 {
		s := start(t, nil, "", 1)
		id := s.system.ProcessRegistry.NextId()
		if seen[id] {
			t.Errorf("%s again", id)
		}
		seen[id] = true
	}
}

// free is an address at which nobody listens.
func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What is sent to a dead address is a dead letter at once.
func TestDeadAddress(t *testing.T) {
	a := start(t, nil, "", 1)
	life := At(free(t), 1)
	begun := time.Now()
	a.system.Root.Send(a.PID(life, "sink"), &word{N: 1})
	a.dead.until(t, "the dead letter", count[*actor.DeadLetterEvent](1))
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if _, err := a.Ask(within(t, 10*time.Second), a.PID(life, "sink"), &question{}); err == nil {
		t.Error("answered")
	}
	ends := a.watcher(t, a.PID(life, "sink"))
	ends.until(t, "the end", count[*actor.Terminated](1))
	a.broken.until(t, "Broken", count[string](1))
	for _, bad := range []string{"", "127.0.0.1:9", "#1", "x#1"} {
		if err := a.Send(a.PID(bad, "sink"), &word{}); err == nil {
			t.Errorf("sent to %q", bad)
		}
		ends := a.watcher(t, a.PID(bad, "sink"))
		ends.until(t, "the end", count[*actor.Terminated](1))
	}
}

// mute accepts connections and says nothing.
func mute(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

// What waits when a node closes becomes dead letters, to the last one.
func TestCloseDrains(t *testing.T) {
	a := start(t, nil, "", 1)
	life := At(mute(t), 1)
	for i := range 100 {
		a.system.Root.Send(a.PID(life, "sink"), &word{N: i})
	}
	begun := time.Now()
	a.Close()
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	if d := a.dead.get(); len(d) != 100 || d[99].Message.(*word).N != 99 {
		t.Errorf("%d dead letters of 100", len(d))
	}
	if err := a.Send(a.PID(life, "sink"), &word{}); !errors.Is(err, ErrClosed) {
		t.Errorf("sent after Close: %v", err)
	}
	a.system.Root.Send(a.PID(life, "sink"), &word{N: 100})
	if d := a.dead.get(); len(d) != 101 {
		t.Errorf("%d dead letters of 101", len(d))
	}
}

// Close writes first what can be written.
func TestCloseFlushes(t *testing.T) {
	a, b := start(t, nil, "", 1), start(t, nil, "", 1)
	text := strings.Repeat("x", 4<<10)
	for i := range 500 {
		a.system.Root.Send(a.PID(b.Self(), "sink"), &word{N: i, Text: text})
	}
	a.Close()
	if d, h := len(a.dead.get()), len(b.heard.until(t, "all", count[any](500))); d != 0 || h != 500 {
		t.Errorf("%d arrived, %d are dead letters", h, d)
	}
}

// What a peer that stands still has not taken becomes dead letters when it is lost:
// all from some message on.
func TestLostDrains(t *testing.T) {
	a, p := start(t, nil, "", 1), run(t, "127.0.0.1:0", 1)
	if _, err := a.Ask(within(t, 10*time.Second), a.PID(p.life, "echo0"), &question{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const n = 3000
	text := strings.Repeat("x", 8<<10)
	for i := range n {
		if err := a.Send(a.PID(p.life, "echo0"), &word{N: i, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	a.Lost(p.life)
	last := func(all []*actor.DeadLetterEvent) bool {
		return len(all) > 0 && all[0].Message.(*word).N == n-len(all)
	}
	d := a.dead.until(t, "the rest", func(all []*actor.DeadLetterEvent) bool { return len(all) > 0 && last(sorted(all)) })
	t.Logf("%d of %d were written, %d are dead letters", n-len(d), n, len(d))
	if len(d) < n/2 {
		t.Errorf("%d dead letters", len(d))
	}
}

// sorted by their numbers: the frame that was being written comes last.
func sorted(all []*actor.DeadLetterEvent) []*actor.DeadLetterEvent {
	out := make([]*actor.DeadLetterEvent, 0, len(all))
	out = append(out, all...)
	for i := range out {
		for j := i; j > 0 && out[j].Message.(*word).N < out[j-1].Message.(*word).N; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

// Nobody's queue grows without end.
func TestQueueIsBounded(t *testing.T) {
	a := start(t, nil, "", 1)
	to := a.PID(At(mute(t), 1), "sink")
	text := strings.Repeat("x", MaxMessage-64)
	n := 0
	for ; n < 2*maxQueue/MaxMessage; n++ {
		if err := a.Send(to, &word{Text: text}); errors.Is(err, errFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n*MaxMessage > maxQueue+maxQueue/8 || n*MaxMessage < maxQueue/2 {
		t.Errorf("%d messages of 32 KiB waited", n)
	}
	a.Lost(to.Address)
	if d := len(a.dead.get()); d != n {
		t.Errorf("%d dead letters of %d", d, n)
	}
}

// A peer costs little memory.
func TestPeersAreSmall(t *testing.T) {
	a := start(t, nil, "", 1)
	var others []*site
	for range 8 {
		others = append(others, start(t, nil, "", 1))
	}
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	before := allocated()
	for _, b := range others {
		if _, err := a.Ask(within(t, 10*time.Second), a.PID(b.Self(), "echo"), &question{}); err != nil {
			t.Fatal(err)
		}
	}
	each := (allocated() - before) / 8
	t.Logf("%d KiB a peer, both ends", each>>10)
	if each > 2<<20 {
		t.Errorf("%d bytes a peer", each)
	}
}

// A peer that stands still and that nobody names is found by keepalive.
func TestSilentPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("waits 13 s")
	}
	t.Parallel()
	a, p := start(t, nil, "", 1), run(t, "127.0.0.1:0", 1)
	ends := a.watcher(t, a.PID(p.life, "echo0"))
	if _, err := a.Ask(within(t, 10*time.Second), a.PID(p.life, "echo0"), &question{N: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	ends.until(t, "its end", count[*actor.Terminated](1))
	t.Logf("found after %v", time.Since(begun))
	a.broken.until(t, "Broken", count[string](1))
}

// A taken port, or an address that nobody could reach, is an error.
func TestStartErrors(t *testing.T) {
	s := start(t, nil, "", 1)
	if _, err := port.Listen(port.Config{Listen: s.port.Addr().String()}); err == nil {
		t.Error("one port, two nodes")
	}
	p, err := port.Listen(port.Config{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := Start(newSystem(), Config{Port: p, Addr: "nowhere", Kinds: kinds()}); err == nil {
		t.Error("an address without a port")
	}
	all, err := port.Listen(port.Config{Listen: "0.0.0.0:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	if _, err := Start(newSystem(), Config{Port: all, Kinds: kinds()}); err == nil || !strings.Contains(err.Error(), "--advertise") {
		t.Errorf("all addresses: %v", err)
	}
}
