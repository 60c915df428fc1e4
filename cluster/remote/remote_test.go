package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

type (
	word struct {
		N    int
		Text string
		From *actor.PID
	}
	question struct{ N int }
	reply    struct {
		N    int
		Life string
	}
	stranger struct{ N int }
)

func kinds() *Kinds {
	k := NewKinds()
	Register[word](k, 1)
	Register[question](k, 2)
	Register[reply](k, 3)
	return k
}

// site is a node's actors in this process.
type site struct {
	*Remote
	system *actor.ActorSystem
	port   *port.Port
	dead   *list[*actor.DeadLetterEvent]
	refuse *list[error]
	broken *list[string]
	heard  *list[any] // by the actor "sink"
}

// list is what was told so far.
type list[T any] struct {
	mu   sync.Mutex
	all  []T
	wake chan struct{}
}

func newList[T any]() *list[T] { return &list[T]{wake: make(chan struct{}, 1)} }

func (l *list[T]) add(x T) {
	l.mu.Lock()
	l.all = append(l.all, x)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *list[T]) get() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// until waits until what was told satisfies ok.
func (l *list[T]) until(t testing.TB, what string, ok func([]T) bool) []T {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		if all := l.get(); ok(all) {
			return all
		}
		select {
		case <-l.wake:
		case <-late:
			all := l.get()
			t.Fatalf("%s: not after 20 s; last of %d: %v", what, len(all), all[max(0, len(all)-5):])
		}
	}
}

func count[T any](n int) func([]T) bool { return func(all []T) bool { return len(all) >= n } }

func holds(text string) func([]error) bool {
	return func(all []error) bool {
		return slices.ContainsFunc(all, func(err error) bool { return strings.Contains(err.Error(), text) })
	}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newSystem() *actor.ActorSystem {
	return actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return quiet }),
		actor.WithDeadLetterThrottleInterval(time.Millisecond)) // a goroutine sleeps so long after a dead letter
}

// start runs a node's part of the network. Its actor "sink" keeps what it hears,
// "echo" answers questions.
func start(t testing.TB, id *cert.Identity, listen string, boot uint64) *site {
	t.Helper()
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	p, err := port.Listen(port.Config{Listen: listen, Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{system: newSystem(), port: p, dead: newList[*actor.DeadLetterEvent](), refuse: newList[error](), broken: newList[string](), heard: newList[any]()}
	s.system.EventStream.Subscribe(func(e any) {
		if d, ok := e.(*actor.DeadLetterEvent); ok {
			s.dead.add(d)
		}
	})
	s.Remote, err = Start(s.system, Config{
		Port: p, Boot: boot, Kinds: kinds(),
		Refused: func(from string, why error) { s.refuse.add(fmt.Errorf("%s: %w", from, why)) },
		Broken:  func(life string, why error) { s.broken.add(life + ": " + why.Error()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.spawn(t, "sink", func(c actor.Context) {
		switch c.Message().(type) {
		case *actor.Started, *actor.Stopping, *actor.Stopped:
		default:
			s.heard.add(c.Message())
		}
	})
	s.spawn(t, "echo", func(c actor.Context) {
		if q, ok := c.Message().(*question); ok {
			c.Respond(&reply{N: q.N, Life: s.Self()})
		}
	})
	served := make(chan struct{})
	go func() { defer close(served); p.Serve() }()
	t.Cleanup(func() {
		s.Close()
		p.Close()
		<-served
		s.system.Shutdown()
	})
	return s
}

func (s *site) spawn(t testing.TB, name string, receive func(actor.Context)) *actor.PID {
	t.Helper()
	pid, err := s.system.Root.SpawnNamed(actor.PropsFromFunc(receive), name)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// watcher is an actor that watches others and keeps whom it was told to be gone.
func (s *site) watcher(t testing.TB, who ...*actor.PID) *list[*actor.Terminated] {
	t.Helper()
	l, ready := newList[*actor.Terminated](), make(chan struct{})
	s.system.Root.Spawn(actor.PropsFromFunc(func(c actor.Context) {
		switch m := c.Message().(type) {
		case *actor.Started:
			for _, w := range who {
				c.Watch(w)
			}
			close(ready)
		case *actor.Terminated:
			l.add(m)
		}
	}))
	<-ready
	return l
}

func issue(t testing.TB) func(cert.Request) *cert.Identity {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := cert.InitCA(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func(r cert.Request) *cert.Identity {
		d := t.TempDir()
		if err := ca.Issue(r, d); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(d)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestSendAskWatch(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure=%v", secure), func(t *testing.T) {
			var id *cert.Identity
			if secure {
				id = issue(t)(cert.Request{Hosts: []string{"127.0.0.1"}})
			}
			a, b := start(t, id, "", 3), start(t, id, "", 8)
			sink := a.PID(b.Self(), "sink")
			for i := range 1000 {
				a.system.Root.Send(sink, &word{N: i, Text: "x", From: a.PID(a.Self(), "sink")})
			}
			for i, m := range b.heard.until(t, "words", count[any](1000)) {
				if w, ok := m.(*word); !ok || w.N != i || w.Text != "x" || !w.From.Equal(a.PID(a.Self(), "sink")) {
					t.Fatalf("message %d: %+v", i, m)
				}
			}
			// The PID that came is an address to answer to.
			if err := b.Send(b.heard.get()[0].(*word).From, &word{N: 7}); err != nil {
				t.Fatal(err)
			}
			a.heard.until(t, "the answer", count[any](1))

			for _, to := range []*actor.PID{a.PID(b.Self(), "echo"), a.PID(a.Self(), "echo")} {
				got, err := a.Ask(within(t, 10*time.Second), to, &question{N: 5})
				if r, ok := got.(*reply); err != nil || !ok || r.N != 5 || r.Life != to.Address {
					t.Fatalf("%s answers %+v, %v", to, got, err)
				}
				if _, err := a.Ask(within(t, 10*time.Second), a.PID(to.Address, "nobody"), &question{N: 5}); !errors.Is(err, ErrUnknown) {
					t.Fatalf("nobody answers: %v", err)
				}
			}

			mortal := b.spawn(t, "mortal", func(actor.Context) {})
			ends := a.watcher(t, a.PID(b.Self(), "mortal"), a.PID(b.Self(), "nobody"))
			got := ends.until(t, "nobody's end", count[*actor.Terminated](1))
			if got[0].Who.Id != "nobody" || got[0].Why != actor.TerminatedReason_NotFound {
				t.Fatalf("%+v", got[0])
			}
			b.system.Root.Stop(mortal)
			got = ends.until(t, "the mortal's end", count[*actor.Terminated](2))
			if !got[1].Who.Equal(a.PID(b.Self(), "mortal")) || got[1].Why != actor.TerminatedReason_Stopped {
				t.Fatalf("%+v", got[1])
			}
			if n := len(a.refuse.get()) + len(b.refuse.get()); n > 0 {
				t.Errorf("refused: %v %v", a.refuse.get(), b.refuse.get())
			}
		})
	}
}

// Several wait on one actor at once, each for its own.
func TestManyWaiters(t *testing.T) {
	a, b := start(t, nil, "", 1), start(t, nil, "", 1)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			got, err := a.Ask(within(t, 10*time.Second), a.PID(b.Self(), "echo"), &question{N: i})
			if r, ok := got.(*reply); err != nil || !ok || r.N != i {
				t.Errorf("question %d: %+v, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

// What can't travel is refused where it is sent.
func TestUnregisteredAndTooLarge(t *testing.T) {
	a, b := start(t, nil, "", 1), start(t, nil, "", 1)
	sink := a.PID(b.Self(), "sink")
	large := strings.Repeat("x", MaxMessage)
	for i, m := range []any{&stranger{1}, word{}, (*word)(nil), nil, "text", &actor.PoisonPill{}, &word{Text: large}, &word{From: actor.NewPID("nonhost", "sink")}} {
		want := ErrUnregistered
		switch i {
		case 6:
			want = ErrTooLarge
		case 7:
			want = nil
		}
		if err := a.Send(sink, m); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%T: %v, want %v", m, err, want)
		}
	}
	if _, err := a.Ask(within(t, 10*time.Second), sink, &stranger{}); !errors.Is(err, ErrUnregistered) {
		t.Errorf("asked: %v", err)
	}
	if n := len(a.dead.get()); n > 0 {
		t.Errorf("%d dead letters of what Send refused", n)
	}
	b.spawn(t, "mumbler", func(c actor.Context) {
		if _, ok := c.Message().(*question); ok {
			c.Respond(&stranger{})
		}
	})
	if _, err := a.Ask(within(t, 10*time.Second), a.PID(b.Self(), "mumbler"), &question{}); !errors.Is(err, ErrUnknown) {
		t.Errorf("asked for an answer that can't travel: %v", err)
	}
	// An actor that just sends it finds it among the dead letters, and is told.
	told := newList[any]()
	a.system.Root.Spawn(actor.PropsFromFunc(func(c actor.Context) {
		switch m := c.Message().(type) {
		case *actor.Started:
			c.Request(sink, &stranger{2})
		case *actor.DeadLetterResponse:
			told.add(m)
		}
	}))
	told.until(t, "DeadLetterResponse", count[any](1))
	if d := a.dead.get(); len(d) != 1 || d[0].Message.(*stranger).N != 2 || !d[0].PID.Equal(sink) {
		t.Errorf("dead letters: %+v", d)
	}
	if err := a.Send(sink, &word{N: 9, Text: large[:MaxMessage-64]}); err != nil {
		t.Fatal(err)
	}
	if m := b.heard.until(t, "the one that travels", count[any](1)); m[0].(*word).N != 9 {
		t.Errorf("%+v", m)
	}
}

// A message of which part would be lost is no message.
func TestRegister(t *testing.T) {
	type inner struct{ lost int }
	for name, register := range map[string]func(*Kinds){
		"Err":    func(k *Kinds) { Register[struct{ Err error }](k, 1) },
		"Any":    func(k *Kinds) { Register[struct{ Any any }](k, 1) },
		"Next":   func(k *Kinds) { Register[struct{ Next chan int }](k, 1) },
		"Call":   func(k *Kinds) { Register[struct{ Call func() }](k, 1) },
		"lost":   func(k *Kinds) { Register[struct{ In map[string][]*inner }](k, 1) },
		"number": func(k *Kinds) { Register[word](k, 0) },
		"kind 7": func(k *Kinds) { Register[word](k, 7); Register[reply](k, 7) },
		"one":    func(k *Kinds) { Register[word](k, 7); Register[word](k, 8) },
		"struct": func(k *Kinds) { Register[int](k, 7) },
	} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), name) {
					t.Errorf("%s: %v", name, p)
				}
			}()
			register(NewKinds())
		}()
	}
	_ = inner{}.lost
	k := NewKinds()
	Register[struct {
		Err  error      `msgpack:"-"`
		lost int        `msgpack:"-"`
		P    *actor.PID // and back
		T    time.Time
		IP   net.IP
		M    map[string]map[int]float32
	}](k, 1)
}

// Two thousand messages of 8 KiB, as fast as they can be sent, all arrive.
func TestBurst(t *testing.T) {
	a, b := start(t, nil, "", 1), start(t, nil, "", 1)
	text := strings.Repeat("x", 8<<10)
	for i := range 2000 {
		if err := a.Send(a.PID(b.Self(), "sink"), &word{N: i, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range b.heard.until(t, "all", count[any](2000)) {
		if m.(*word).N != i {
			t.Fatalf("%d comes as %d", m.(*word).N, i)
		}
	}
}

// Frames stay under their limit however large the messages are.
func TestBurstOfLargest(t *testing.T) {
	a, b := start(t, nil, "", 1), start(t, nil, "", 1)
	text := strings.Repeat("x", MaxMessage-64)
	for i := range 500 {
		if err := a.Send(a.PID(b.Self(), "sink"), &word{N: i, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	b.heard.until(t, "all", count[any](500))
}
