package ring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Backends.
const (
	// Auto is nccl where all ranks' buffers are on GPUs, shm where all ranks are on
	// one host, hierarchical where a host has several of them, next to each other,
	// and otherwise tcp. It never picks a plaintext library where an endpoint has TLS.
	Auto = "auto"
	SHM  = "shm"  // shared memory; control over unix sockets
	Unix = "unix" // unix sockets
	TCP  = "tcp"
	// Hierarchical is tcp between hosts, and inside a host shared memory, or NCCL for
	// buffers on GPUs where all ranks have one and NCCL.
	Hierarchical = "hierarchical"
)

// Config says which place a rank takes in which ring.
type Config struct {
	Rank, World int
	Epoch       uint64 // of a ring formed anew: higher than the one before
	Backend     string // "" is Auto
	// Fingerprint must be the same on all ranks: what they train, in which
	// version, and how.
	Fingerprint string
	Committed   uint64 // the last step that this rank committed in an earlier epoch
	Rendezvous  Rendezvous
	Endpoint    *Endpoint // nil: one of loopback
	OwnEndpoint bool      // Endpoint is this ring's alone, which closes it
	Streams     int       // of unix and tcp: connections a direction between two ranks; 0 is 1
	GPU         *GPU      // where this rank's buffers are; nil: host memory
	// PlaintextCollectives allows nccl, mpi and gloo, which neither encrypt nor
	// authenticate, where the endpoint has TLS.
	PlaintextCollectives bool

	Timeout     time.Duration // for a living rank to come to an operation; 0 is DefaultTimeout
	FormTimeout time.Duration // for all ranks to be there; 0 is a minute
	Heartbeat   time.Duration // 0 is 100 ms
	Suspect     time.Duration // without a sign of life a rank is lost; 0 is 700 ms
	Events      Events
}

// Events are called from the ring's goroutines; any may be nil.
type Events struct {
	Lost    func(rank int, why string)
	Refused func(addr, why string) // a connection that has no place here
}

func (c *Config) defaults() error {
	if c.World < 1 || c.Rank < 0 || c.Rank >= c.World {
		return fmt.Errorf("rank %d of a world of %d: ranks count from 0 to world-1", c.Rank, c.World)
	}
	if c.World > 1<<15 {
		return fmt.Errorf("a world of %d ranks; at most %d", c.World, 1<<15)
	}
	if c.Backend == "" {
		c.Backend = Auto
	}
	if !slices.Contains(Backends(), c.Backend) {
		return fmt.Errorf("backend %q; there are %s", c.Backend, strings.Join(Backends(), ", "))
	}
	if c.Rendezvous == nil && c.World > 1 {
		return errors.New("a ring of several ranks needs a Rendezvous")
	}
	if c.Streams == 0 {
		c.Streams = 1
	}
	if c.Streams < 1 || c.Streams > 16 {
		return fmt.Errorf("%d streams; 1 to 16", c.Streams)
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{{&c.Timeout, DefaultTimeout}, {&c.FormTimeout, time.Minute}, {&c.Heartbeat, 100 * time.Millisecond}, {&c.Suspect, 700 * time.Millisecond}} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	return nil
}

// card is what a rank tells the others about itself.
type card struct {
	Version     int    `json:"version"`
	Rank        int    `json:"rank"`
	World       int    `json:"world"`
	Epoch       uint64 `json:"epoch"`
	Backend     string `json:"backend"`
	Fingerprint string `json:"fingerprint"`
	Host        string `json:"host"`
	Unix        string `json:"unix,omitempty"`
	TCP         string `json:"tcp,omitempty"`
	Committed   uint64 `json:"committed"`
	Streams     int    `json:"streams"`
	CPU         string `json:"cpu"`

	GPU       bool   `json:"gpu,omitempty"`
	Lacks     string `json:"lacks,omitempty"` // why this rank can't use the backend, or where nccl may be picked that
	RDMA      bool   `json:"rdma,omitempty"`  // nccl reaches other hosts by it
	Secured   bool   `json:"secured,omitempty"`
	Plaintext bool   `json:"plaintext,omitempty"` // it is allowed all the same
}

// Form joins a ring and returns when all ranks are in it: at most FormTimeout
// later, with an error that names who is missing or does not fit.
func Form(ctx context.Context, cfg Config) (*Comm, error) {
	if err := cfg.defaults(); err != nil {
		return nil, fmt.Errorf("form ring: %w", err)
	}
	stop := newStopper()
	if cfg.World == 1 {
		c := newComm(0, 1, cfg.Epoch, &alone{stop}, stop, false)
		c.committed = cfg.Committed
		return c, nil
	}
	return formWithin(ctx, cfg, stop)
}

func formWithin(ctx context.Context, cfg Config, stop *stopper) (*Comm, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.FormTimeout, fmt.Errorf("%w: not all ranks came within %s", ErrTimeout, cfg.FormTimeout))
	defer cancel()
	c, err := form(ctx, &cfg, stop)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !strings.Contains(err.Error(), cause.Error()) {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return nil, fmt.Errorf("form ring epoch %d, rank %d of %d: %w", cfg.Epoch, cfg.Rank, cfg.World, err)
	}
	return c, nil
}

func form(ctx context.Context, cfg *Config, stop *stopper) (*Comm, error) {
	ep := cfg.Endpoint
	var onClose []func() error
	if cfg.OwnEndpoint {
		onClose = append(onClose, ep.Close)
	}
	if ep == nil {
		var err error
		if ep, err = NewEndpoint(EndpointConfig{NoTCP: cfg.Backend == SHM || cfg.Backend == Unix, NoLocal: cfg.Backend == TCP}); err != nil {
			return nil, err
		}
		onClose = append(onClose, ep.Close)
		cfg.Endpoint, cfg.OwnEndpoint = ep, true
	}
	fail := func(err error) (*Comm, error) {
		for _, f := range onClose {
			_ = f()
		}
		return nil, err
	}
	mine := card{
		Version: wireVersion, Rank: cfg.Rank, World: cfg.World, Epoch: cfg.Epoch, Backend: cfg.Backend, Fingerprint: cfg.Fingerprint,
		Host: ep.host, Unix: ep.unixAddr(), TCP: ep.tcpAddr(), Committed: cfg.Committed, Streams: cfg.Streams, CPU: runtime.GOARCH,
		GPU: cfg.GPU != nil, Secured: ep.secured(), Plaintext: cfg.PlaintextCollectives,
	}
	if wanted := cfg.Backend; plaintext(wanted) || mine.GPU && (wanted == Auto || wanted == Hierarchical) {
		if !plaintext(wanted) {
			wanted = NCCL
		}
		if err := Available(wanted); err != nil {
			mine.Lacks = err.Error()
		} else if l, _ := library(wanted); l.RDMA != nil {
			mine.RDMA = l.RDMA()
		}
	}
	b, err := json.Marshal(mine)
	if err != nil {
		return fail(err)
	}
	raw, err := cfg.Rendezvous.Join(ctx, cfg.Rank, cfg.World, cfg.Epoch, b)
	if err != nil {
		return fail(fmt.Errorf("rendezvous: %w", err))
	}
	cards, err := parseCards(raw, &mine)
	if err != nil {
		return fail(err)
	}
	how, err := choose(cfg.Backend, cards)
	if err != nil {
		return fail(err)
	}
	backend := how.backend
	links, err := ep.connect(ctx, cfg, cards, backend)
	if err != nil {
		return fail(err)
	}
	mesh := newMesh(cfg.Rank, links.control, stop, cfg)
	var t Transport
	eager, devices := backend != SHM, how.gpus
	switch lib, foreign := library(backend); {
	case foreign:
		devices = lib.Devices
		t, err = newBeside(ctx, lib, mesh, cards, stop, cfg)
	case backend == SHM:
		t, err = newShared(mesh, hosts(cards)[0], true, stop, cfg)
	case backend == Hierarchical:
		t, err = newHierarchy(ctx, mesh, hosts(cards), how.gpus, links, stop, cfg)
	default:
		t = newSockets(mesh, links.out, links.in, stop, cfg)
	}
	if err != nil {
		mesh.abort(err)
		links.relay.close()
		_ = mesh.close()
		return fail(err)
	}
	c := newComm(cfg.Rank, cfg.World, cfg.Epoch, t, stop, eager)
	c.backend, c.devices, c.choice = backend, devices, how.String()
	c.onClose, c.cfg, c.cards, c.mesh = onClose, cfg, cards, mesh
	for _, k := range cards {
		c.committed = max(c.committed, k.Committed)
	}
	return c, nil
}

// alone is the transport of a world of one.
type alone struct{ stop *stopper }

func (a *alone) Do(*Op) error       { return a.stop.reason() }
func (a *alone) Abort(reason error) { a.stop.stop(reason) }
func (a *alone) Close() error       { a.stop.stop(ErrClosed); return nil }

// parseCards checks that all ranks mean the same ring.
func parseCards(raw [][]byte, mine *card) ([]card, error) {
	if len(raw) != mine.World {
		return nil, fmt.Errorf("rendezvous: %d ranks came to a world of %d", len(raw), mine.World)
	}
	cards := make([]card, len(raw))
	for r, b := range raw {
		c := &cards[r]
		if err := json.Unmarshal(b, c); err != nil {
			return nil, fmt.Errorf("rendezvous: rank %d's card: %w", r, err)
		}
		differs := ""
		switch {
		case c.Version != mine.Version:
			differs = fmt.Sprintf("speaks version %d of the ring's protocol, this rank %d; run the same autoglm everywhere", c.Version, mine.Version)
		case c.Rank != r:
			differs = fmt.Sprintf("came as rank %d", c.Rank)
		case c.World != mine.World:
			differs = fmt.Sprintf("was started for a world of %d ranks, this one for %d", c.World, mine.World)
		case c.Epoch != mine.Epoch:
			differs = fmt.Sprintf("is at epoch %d, this rank at %d", c.Epoch, mine.Epoch)
		case c.Fingerprint != mine.Fingerprint:
			differs = fmt.Sprintf("would train something else: %q, this rank %q", c.Fingerprint, mine.Fingerprint)
		case c.Backend != mine.Backend:
			differs = fmt.Sprintf("asks for backend %s, this rank for %s", c.Backend, mine.Backend)
		case c.Streams != mine.Streams:
			differs = fmt.Sprintf("asks for %d streams, this rank for %d", c.Streams, mine.Streams)
		}
		if differs != "" {
			return nil, fmt.Errorf("rank %d %s", r, differs)
		}
	}
	return cards, nil
}

// links are a rank's connections by the other rank's number.
type links struct {
	control []net.Conn
	out, in [][]stream
	relay   relay
}

func (l *links) close() {
	l.relay.close()
	for _, c := range l.control {
		if c != nil {
			c.Close()
		}
	}
	for _, all := range [][][]stream{l.out, l.in} {
		for _, ss := range all {
			for _, s := range ss {
				if s != nil {
					s.close()
				}
			}
		}
	}
}

// connect links this rank with every other one: the higher rank dials for the
// control connection, the sender for each stream of data.
func (e *Endpoint) connect(ctx context.Context, cfg *Config, cards []card, backend string) (*links, error) {
	streams := cfg.Streams
	if backend != Unix && backend != TCP {
		streams = 0
	}
	l := &links{control: make([]net.Conn, cfg.World), out: make([][]stream, cfg.World), in: make([][]stream, cfg.World)}
	awaited := 0
	for r := range cards {
		if r != cfg.Rank {
			l.out[r], l.in[r] = make([]stream, streams), make([]stream, streams)
			if awaited += streams; r > cfg.Rank {
				awaited++
			}
		}
	}
	if backend == Hierarchical {
		l.relay.up, l.relay.down = neighbours(hosts(cards), cfg.Rank)
		if l.relay.down >= 0 {
			awaited++
		}
	} else {
		l.relay.up, l.relay.down = -1, -1
	}
	accepted := make(chan error, 1)
	acceptCtx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	guests := e.expect(cfg.Epoch)
	defer e.unexpect(cfg.Epoch)
	go func() { accepted <- e.accept(acceptCtx, guests, cfg, l, awaited) }()
	err := e.dialAll(ctx, cfg, cards, backend, l, streams)
	if err != nil {
		giveUp(err)
	}
	if aerr := <-accepted; err == nil {
		err = aerr
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (e *Endpoint) dialAll(ctx context.Context, cfg *Config, cards []card, backend string, l *links, streams int) error {
	h := hello{rank: cfg.Rank, world: cfg.World, epoch: cfg.Epoch, fingerprint: cfg.Fingerprint}
	for i := 1; i < len(cards); i++ {
		r := (cfg.Rank + i) % len(cards) // not all to rank 0 first
		via := path(backend, &cards[cfg.Rank], &cards[r])
		if r < cfg.Rank {
			h.purpose, h.stream = forControl, 0
			c, err := e.dial(ctx, via, cards[r], h)
			if err != nil {
				return fmt.Errorf("reach rank %d at %s: %w", r, cards[r].TCP, err)
			}
			l.control[r] = c
		}
		if r == l.relay.up {
			h.purpose, h.stream = forRelay, 0
			c, err := e.dial(ctx, via, cards[r], h)
			if err != nil {
				return fmt.Errorf("reach rank %d at %s: %w", r, cards[r].TCP, err)
			}
			l.relay.toUp = c
		}
		for s := range streams {
			h.purpose, h.stream = forData, byte(s)
			c, err := e.dial(ctx, via, cards[r], h)
			if err == nil {
				l.out[r][s], err = newStream(c, false)
			}
			if err != nil {
				return fmt.Errorf("reach rank %d at %s: %w", r, cards[r].TCP, err)
			}
		}
	}
	return nil
}

// dial reaches one rank and says hello. It tries again while nobody listens, or
// while that rank still is in an older epoch, until ctx ends.
func (e *Endpoint) dial(ctx context.Context, backend string, to card, h hello) (net.Conn, error) {
	pause := time.Millisecond
	for {
		c, err := e.dialOnce(ctx, backend, to)
		if err == nil {
			deadline, _ := ctx.Deadline()
			if err = greet(c, h, deadline); err == nil {
				return c, nil
			}
			c.Close()
		}
		var refused *RefusedError
		if errors.As(err, &refused) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
			pause = min(2*pause, 100*time.Millisecond)
		}
	}
}

func (e *Endpoint) dialOnce(ctx context.Context, backend string, to card) (net.Conn, error) {
	var d net.Dialer
	if backend != TCP {
		return d.DialContext(ctx, "unix", to.Unix)
	}
	if e.cfg.Dial != nil {
		return e.cfg.Dial(ctx, to.TCP)
	}
	return d.DialContext(ctx, "tcp", to.TCP)
}

// accept takes the connections that this rank is owed and refuses all others.
func (e *Endpoint) accept(ctx context.Context, guests <-chan guest, cfg *Config, to *links, awaited int) error {
	for awaited > 0 {
		select {
		case g := <-guests:
			why, err := admit(g, cfg, to)
			if err != nil {
				g.conn.Close()
				return err
			}
			if why == "" {
				awaited--
				continue
			}
			if cfg.Events.Refused != nil {
				cfg.Events.Refused(g.conn.RemoteAddr().String(), why)
			}
			g.conn.Close()
		case <-ctx.Done():
			return fmt.Errorf("%s did not connect: %w", missing(to, cfg.Rank), context.Cause(ctx))
		}
	}
	return nil
}

// admit answers a guest; why is the reason of a refusal.
func admit(g guest, cfg *Config, to *links) (why string, err error) {
	h := g.hello
	r, s := h.rank, int(h.stream)
	switch {
	case h.world != cfg.World:
		why = fmt.Sprintf("this ring has %d ranks, not %d", cfg.World, h.world)
	case h.fingerprint != cfg.Fingerprint:
		why = fmt.Sprintf("this ring trains %q, not %q", cfg.Fingerprint, h.fingerprint)
	case r >= cfg.World || r == cfg.Rank:
		why = fmt.Sprintf("this is rank %d of %d; there is no place for another rank %d", cfg.Rank, cfg.World, r)
	case h.purpose == forControl && (r < cfg.Rank || to.control[r] != nil), h.purpose == forData && (s >= len(to.in[r]) || to.in[r][s] != nil):
		why = fmt.Sprintf("rank %d is there already; are two processes started as rank %d?", r, r)
	case h.purpose == forRelay && (r != to.relay.down || to.relay.toDown != nil):
		why = fmt.Sprintf("rank %d has nothing to relay to rank %d", r, cfg.Rank)
	case h.purpose != forControl && h.purpose != forData && h.purpose != forRelay:
		why = fmt.Sprintf("a connection for purpose %d", h.purpose)
	}
	if werr := writeAnswer(g.conn, why); why != "" || werr != nil {
		if why == "" {
			why = werr.Error()
		}
		return why, nil
	}
	if err := g.conn.SetDeadline(time.Time{}); err != nil {
		return err.Error(), nil
	}
	switch h.purpose {
	case forControl:
		to.control[r] = g.conn
		return "", nil
	case forRelay:
		to.relay.toDown = g.conn
		return "", nil
	}
	to.in[r][s], err = newStream(g.conn, true)
	return "", err
}

// missing names the ranks that have not connected.
func missing(l *links, rank int) string {
	return ranksThat(len(l.control), func(r int) bool {
		return r != rank && (r > rank && l.control[r] == nil || slices.Contains(l.in[r], nil) || r == l.relay.down && l.relay.toDown == nil)
	})
}
