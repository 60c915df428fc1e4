package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

// Config of a node's membership.
type Config struct {
	Dir       string            // keeps node.json and the gossip keys; made when missing
	Port      *port.Port        // not serving yet
	Advertise string            // host:port under which others reach this node; the port's own when empty
	Name      string            // unique in the cluster; the host's when empty
	Seeds     []string          // nodes to join: host:port, srv:NAME, or file:PATH with one a line
	Labels    map[string]string // rack, zone, price class
	Software  string            // this program's version
	Card      func() []byte     // what others may ask for, at most 512 KiB; may be nil, must not block
	Events    Events
}

// Events are called one at a time, in order, from a goroutine of Members; none may
// block for long, none may call Close. Any may be nil.
type Events struct {
	Joined func(Member)               // greeted, or back
	Gone   func(m Member, why string) // dead, left, or started anew under a higher boot number
	Warn   func(about, addr string, err error)
}

// Member is a node that was greeted.
type Member struct {
	ID       string
	Boot     uint64
	Name     string
	Addr     string // host:port
	Software string
	Version  int // of the node protocol, that both sides speak
	Since    time.Time
	Labels   map[string]string
}

// Members is a node's view of its cluster. All methods may be called from any
// goroutine.
type Members struct {
	cfg       Config
	self      Member
	transport *transport
	delegate  *delegate
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	ready     chan struct{} // closed when this node belongs to a cluster

	events chan func()

	mu     sync.Mutex
	kept   kept
	keys   keySet
	list   *memberlist.Memberlist // nil before this node belongs to a cluster
	ring   *memberlist.Keyring
	alive  map[string]Member // by id, this node included once it is ready
	heard  map[string]hint   // by id: whom gossip says is there
	hosts  map[string]string // by id: the host of a node's address as it greeted, where that is a name
	busy   map[string]bool   // greetings under way, by id
	own    map[string]bool   // addresses at which this node met itself
	warned map[string]time.Time
	cuts   func(addr string) bool // of tests: addresses that can't be reached
	left   bool
}

// Times of the loops.
const (
	rejoinEvery    = time.Second
	reconcileEvery = time.Second
	warnEvery      = 10 * time.Minute // the same warning again
	rejoinAtATime  = 3
	farewell       = 2 * time.Second
)

// Start begins to join, or makes a cluster where there are neither seeds nor state;
// the caller then serves the port. Errors are those of this machine alone: seeds
// that can't be reached yet are dialled again until they can.
func Start(ctx context.Context, cfg Config) (*Members, error) {
	k, err := loadKept(cfg.Dir)
	if err != nil {
		return nil, err
	}
	m := &Members{
		cfg: cfg, kept: k, ready: make(chan struct{}), events: make(chan func(), 1024),
		alive: map[string]Member{}, heard: map[string]hint{}, hosts: map[string]string{}, busy: map[string]bool{}, warned: map[string]time.Time{},
	}
	if m.keys, err = loadKeys(cfg.Dir); err != nil {
		return nil, err
	}
	if m.self, err = selfOf(cfg, k); err != nil {
		return nil, err
	}
	m.own = map[string]bool{m.self.Addr: true, cfg.Port.Addr().String(): true}
	if k.Cluster != "" && m.keys.Serial == 0 && len(cfg.Seeds) == 0 {
		return nil, fmt.Errorf("%s belongs to cluster %s and has lost its gossip keys; start it with --join once, so that another node hands them out", cfg.Dir, k.Cluster)
	}
	if k.Cluster == "" && len(cfg.Seeds) == 0 {
		if err := m.found(); err != nil {
			return nil, err
		}
	}
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.delegate = &delegate{m: m, wake: make(chan struct{}, 1), updates: map[string]update{}}
	m.transport = newTransport(m)
	cfg.Port.Handle(helloProtocol, cert.Node, m.answer)
	m.wg.Add(3)
	go m.tell()
	go m.join()
	go m.listen()
	return m, nil
}

func selfOf(cfg Config, k kept) (Member, error) {
	s := Member{ID: k.ID, Boot: k.Boot, Name: cfg.Name, Addr: cfg.Advertise, Software: cfg.Software, Version: Version, Since: time.Now(), Labels: cfg.Labels}
	if s.Name == "" {
		var err error
		if s.Name, err = os.Hostname(); err != nil {
			return s, err
		}
	}
	if s.Addr == "" {
		a := cfg.Port.Addr()
		if a.IP.IsUnspecified() {
			return s, fmt.Errorf("listening on all addresses (%s), others need to know one of them: give --advertise HOST:PORT", a)
		}
		s.Addr = a.String()
	}
	if _, _, err := net.SplitHostPort(s.Addr); err != nil {
		return s, fmt.Errorf("advertised address %q: %w; give HOST:PORT", s.Addr, err)
	}
	return s, nil
}

// found makes a new cluster of this node alone.
func (m *Members) found() error {
	id, err := randomID()
	if err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	m.keys = keySet{Serial: 1, Keys: [][]byte{key}}
	if err := m.keys.store(m.cfg.Dir); err != nil {
		return err
	}
	m.kept.Cluster = id
	return m.kept.store(m.cfg.Dir)
}

// Self is this node.
func (m *Members) Self() Member { return m.self }

// Cluster is the id of the cluster, "" before Ready.
func (m *Members) Cluster() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept.Cluster
}

// Ready waits until this node belongs to a cluster.
func (m *Members) Ready(ctx context.Context) error {
	select {
	case <-m.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.ctx.Done():
		return m.ctx.Err()
	}
}

// Members lists who is there, this node included, by name.
func (m *Members) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.alive), func(a, b Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
}

// Member finds one by id.
func (m *Members) Member(id string) (Member, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.alive[id]
	return o, ok
}

// warn passes a warning on, the same one not again for a while.
func (m *Members) warn(about, addr string, err error) {
	key := about + "\x00" + addr + "\x00" + err.Error()
	m.mu.Lock()
	now := time.Now()
	last, ok := m.warned[key]
	if ok && now.Sub(last) < warnEvery {
		m.mu.Unlock()
		return
	}
	if len(m.warned) > 1000 {
		clear(m.warned)
	}
	m.warned[key] = now
	m.mu.Unlock()
	m.emit(func(e Events) {
		if e.Warn != nil {
			e.Warn(about, addr, err)
		}
	})
}

func (m *Members) emit(f func(Events)) {
	select {
	case m.events <- func() { f(m.cfg.Events) }:
	case <-m.ctx.Done():
	}
}

// tell calls the listener.
func (m *Members) tell() {
	defer m.wg.Done()
	for {
		select {
		case f := <-m.events:
			f()
		case <-m.ctx.Done():
			return
		}
	}
}

// join greets seeds until this node belongs to a cluster, then keeps looking for
// those that are missing.
func (m *Members) join() {
	defer m.wg.Done()
	for {
		m.mu.Lock()
		belongs := m.kept.Cluster != "" && m.keys.Serial > 0
		m.mu.Unlock()
		if belongs {
			if err := m.gossip(); err != nil {
				m.warn("gossip", m.self.Addr, err)
			} else if !m.isReady() {
				m.mu.Lock()
				m.alive[m.self.ID] = m.self
				m.mu.Unlock()
				m.emit(func(e Events) {
					if e.Joined != nil {
						e.Joined(m.self)
					}
				})
				close(m.ready)
			}
		}
		found := m.seek()
		pause := rejoinEvery/2 + rand.N(rejoinEvery)
		if !belongs {
			pause = 100 * time.Millisecond
			if found {
				continue
			}
		}
		select {
		case <-time.After(pause):
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Members) isReady() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// candidate is an address that may be a missing node's.
type candidate struct{ addr, host string }

// seek greets some of the seeds and known peers that are not there, and has gossip
// join those that answer. It tells whether one did.
func (m *Members) seek() bool {
	missing := m.missing()
	rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] })
	found := false
	for _, c := range missing[:min(len(missing), rejoinAtATime)] {
		a, err := m.greet(m.ctx, c.addr, c.host)
		var refused *RefusedError
		switch {
		case m.ctx.Err() != nil:
			return false
		case errors.Is(err, errSelf):
			m.mu.Lock()
			m.own[c.addr] = true
			m.mu.Unlock()
			continue
		case errors.As(err, &refused):
			m.warn("join", c.addr, refused)
			continue
		case err != nil:
			m.warn("join", c.addr, err)
			continue
		}
		found = true
		m.mu.Lock()
		list := m.list
		m.mu.Unlock()
		if list == nil {
			return true // keys first, then again
		}
		ip, err := m.resolve(c.addr)
		if err != nil {
			m.warn("join", c.addr, err)
			continue
		}
		if _, err := list.Join([]string{gossipName(a.ID, a.Boot) + "/" + ip}); err != nil {
			m.warn("join", c.addr, err)
		}
	}
	return found
}

func (m *Members) resolve(addr string) (string, error) {
	t, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// missing lists the addresses of seeds and known peers among whom nobody is alive.
func (m *Members) missing() []candidate {
	var all []candidate
	for _, s := range m.cfg.Seeds {
		c, err := m.seeds(s)
		if err != nil {
			m.warn("join", s, err)
		}
		all = append(all, c...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.kept.Peers {
		all = append(all, candidate{addr: p.Addr})
	}
	here := maps.Clone(m.own)
	for _, o := range m.alive {
		here[o.Addr] = true
	}
	for _, h := range m.heard {
		if _, ok := m.alive[h.id]; ok {
			here[h.addr] = true
		}
	}
	var out []candidate
	for _, c := range all {
		if !here[c.addr] {
			here[c.addr] = true
			out = append(out, c)
		}
	}
	return out
}

// seeds resolves one entry of the list of seeds.
func (m *Members) seeds(s string) ([]candidate, error) {
	if path, ok := strings.CutPrefix(s, "file:"); ok {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var out []candidate
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "file:") {
				continue
			}
			c, err := m.seeds(line)
			if err != nil {
				return out, fmt.Errorf("%s: %w", path, err)
			}
			out = append(out, c...)
		}
		return out, nil
	}
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
	defer cancel()
	if name, ok := strings.CutPrefix(s, "srv:"); ok {
		_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
		var out []candidate
		for _, r := range records {
			host := strings.TrimSuffix(r.Target, ".")
			out = append(out, candidate{addr: net.JoinHostPort(host, fmt.Sprint(r.Port))})
		}
		return out, err
	}
	host, number, err := net.SplitHostPort(s)
	if err != nil {
		return nil, fmt.Errorf("%w; give HOST:PORT, srv:NAME or file:PATH", err)
	}
	if net.ParseIP(host) != nil {
		return []candidate{{addr: s}}, nil
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	var out []candidate
	for _, ip := range ips {
		out = append(out, candidate{net.JoinHostPort(ip, number), host})
	}
	return out, err
}

// listen turns gossip's hints into greetings and deaths.
func (m *Members) listen() {
	defer m.wg.Done()
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.delegate.wake:
			for _, h := range m.delegate.take() {
				m.hint(h)
			}
		case <-tick.C:
			m.mu.Lock()
			var again []hint
			for id, h := range m.heard {
				if o, ok := m.alive[id]; (!ok || o.Boot < h.boot) && id != m.self.ID {
					again = append(again, h)
				}
			}
			m.mu.Unlock()
			for _, h := range again {
				m.meet(h)
			}
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Members) hint(h hint) {
	if h.id == m.self.ID {
		return
	}
	m.mu.Lock()
	o, known := m.heard[h.id]
	switch {
	case h.here && (!known || o.boot <= h.boot):
		m.heard[h.id] = h
	case !h.here && known && o.boot == h.boot:
		delete(m.heard, h.id)
	}
	m.mu.Unlock()
	if h.here {
		m.meet(h)
		return
	}
	why := "silent"
	if h.left {
		why = "left"
	}
	m.bury(h.id, h.boot, why, h.left)
}

// meet greets whom gossip named, off the loop.
func (m *Members) meet(h hint) {
	m.mu.Lock()
	o, known := m.alive[h.id]
	if m.busy[h.id] || known && o.Boot >= h.boot {
		m.mu.Unlock()
		return
	}
	m.busy[h.id] = true
	m.mu.Unlock()
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		a, err := m.greet(m.ctx, h.addr, h.host)
		m.mu.Lock()
		delete(m.busy, h.id)
		m.mu.Unlock()
		if err != nil {
			// Gossip is slow to know of a death.
			if m.ctx.Err() == nil && !errors.Is(err, syscall.ECONNREFUSED) {
				m.warn("greeting", h.addr, err)
			}
			return
		}
		m.admit(a.member())
	}()
}

// admit makes whom was greeted a member, unless gossip has taken it back meanwhile.
func (m *Members) admit(n Member) {
	m.mu.Lock()
	o, known := m.alive[n.ID]
	h, heard := m.heard[n.ID]
	if n.ID == m.self.ID || known && o.Boot >= n.Boot || !heard || h.boot != n.Boot {
		m.mu.Unlock()
		return
	}
	m.alive[n.ID] = n
	m.remember(n)
	m.mu.Unlock()
	m.emit(func(e Events) {
		if known && e.Gone != nil {
			e.Gone(o, "started anew")
		}
		if e.Joined != nil {
			e.Joined(n)
		}
	})
}

// remember keeps a peer's address on disk; the lock is held.
func (m *Members) remember(n Member) {
	now := time.Now()
	for id, p := range m.kept.Peers {
		if _, ok := m.alive[id]; !ok && now.Sub(p.At) > forgetting {
			delete(m.kept.Peers, id)
		}
	}
	if p, ok := m.kept.Peers[n.ID]; ok && p.Addr == n.Addr && now.Sub(p.At) < time.Hour {
		return
	}
	m.kept.Peers[n.ID] = lastSeen{n.Addr, now}
	m.store()
}

// store keeps what changed; a full disk is said and changes nothing: it is only
// where to look first. The lock is held.
func (m *Members) store() {
	if err := m.kept.store(m.cfg.Dir); err != nil {
		m.wg.Add(1)
		go func() {
			defer m.wg.Done()
			m.warn("state", m.cfg.Dir, err)
		}()
	}
}

// bury takes a member out.
func (m *Members) bury(id string, boot uint64, why string, left bool) {
	m.mu.Lock()
	o, ok := m.alive[id]
	if !ok || o.Boot != boot {
		m.mu.Unlock()
		return
	}
	delete(m.alive, id)
	if left {
		delete(m.kept.Peers, id)
		m.store()
	}
	m.mu.Unlock()
	m.emit(func(e Events) {
		if e.Gone != nil {
			e.Gone(o, why)
		}
	})
}

// Suspect looks at once whether a member lives, because a connection to it broke.
// One that refuses connections, or lives under a new boot number, is gone; one that
// does not answer in time is left to gossip.
func (m *Members) Suspect(id string) {
	m.mu.Lock()
	o, ok := m.alive[id]
	h := m.heard[id]
	m.mu.Unlock()
	if !ok || id == m.self.ID {
		return
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		ctx, cancel := context.WithTimeout(m.ctx, time.Second)
		defer cancel()
		for {
			a, err := m.exchange(ctx, o.Addr, h.host, true)
			switch {
			case errors.Is(err, syscall.ECONNREFUSED):
				m.bury(id, o.Boot, "its process is gone", false)
				return
			case errors.Is(err, cert.ErrRevoked):
				m.bury(id, o.Boot, "its certificate was revoked", false)
				return
			case err == nil && (a.ID != id || a.Boot > o.Boot):
				m.bury(id, o.Boot, "started anew", false)
				return
			case err == nil:
				return
			}
			// A dying process closes its connections before its listener, whose queue
			// still takes one and hangs up.
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
	}()
}

// Expel takes out the members whose certificates were revoked, as far as they answer; it
// returns when all were asked.
func (m *Members) Expel(ctx context.Context) {
	var wg sync.WaitGroup
	for _, o := range m.Members() {
		if o.ID == m.self.ID {
			continue
		}
		m.mu.Lock()
		host := m.heard[o.ID].host
		m.mu.Unlock()
		wg.Go(func() {
			if _, err := m.exchange(ctx, o.Addr, host, true); errors.Is(err, cert.ErrRevoked) {
				m.bury(o.ID, o.Boot, "its certificate was revoked", false)
			}
		})
	}
	wg.Wait()
}

// Publish tells all members small news of this node, at most 256 bytes; only the
// latest counts.
func (m *Members) Publish(body []byte) error {
	if len(body) > 256 {
		return fmt.Errorf("news of %d bytes, at most 256 travel by gossip", len(body))
	}
	m.spread(0, body)
	return nil
}

// spread queues news under the next serial, or under this one.
func (m *Members) spread(serial uint64, body []byte) {
	d := m.delegate
	d.mu.Lock()
	d.serial++
	u := update{boot: m.self.Boot, serial: cmp.Or(serial, d.serial), body: append([]byte(nil), body...)}
	b := encodeNews(m.self.ID, u)
	d.updates[m.self.ID] = u
	d.own = b
	d.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list != nil {
		d.queue.QueueBroadcast(news{m.self.ID, b})
	}
}

// News is the latest that each member published, by id; none of an earlier boot.
func (m *Members) News() map[string][]byte {
	out := map[string][]byte{}
	for _, o := range m.Members() {
		m.delegate.mu.Lock()
		if u, ok := m.delegate.updates[o.ID]; ok && u.boot == o.Boot {
			out[o.ID] = u.body
		}
		m.delegate.mu.Unlock()
	}
	return out
}

// Card asks a member for its card.
func (m *Members) Card(ctx context.Context, id string) ([]byte, error) {
	if id == m.self.ID {
		if m.cfg.Card == nil {
			return nil, nil
		}
		return m.cfg.Card(), nil
	}
	m.mu.Lock()
	o, ok := m.alive[id]
	host := m.heard[id].host
	m.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("node %s is not there", id)
	}
	a, err := m.greet(ctx, o.Addr, host)
	return a.Card, err
}

// hostOf is the host that a node's certificate names, where gossip or its greeting,
// which comes first, said so.
func (m *Members) hostOf(gossipName string) string {
	id, _, err := parseGossipName(gossipName)
	if err != nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return cmp.Or(m.heard[id].host, m.hosts[id])
}

var errCut = errors.New("cut off")

// cut tells whether a test has cut an address off.
func (m *Members) cut(addr string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cuts != nil && m.cuts(addr)
}

// Leave says good-bye, so that nobody looks for this node, and closes.
func (m *Members) Leave(ctx context.Context) error {
	m.mu.Lock()
	list, left := m.list, m.left
	m.left = true
	m.mu.Unlock()
	var err error
	if list != nil && !left {
		m.spread(lastSerial, nil)
		d := farewell
		if t, ok := ctx.Deadline(); ok {
			d = min(d, time.Until(t))
		}
		err = list.Leave(d)
	}
	return errors.Join(err, m.Close())
}

// Close stops; to the others it is a death. The port is closed too.
func (m *Members) Close() error {
	m.cancel()
	m.mu.Lock()
	list := m.list
	m.mu.Unlock()
	var err error
	if list != nil {
		err = list.Shutdown()
	} else {
		err = m.transport.Shutdown()
	}
	err = errors.Join(err, m.cfg.Port.Close())
	m.wg.Wait()
	m.transport.wg.Wait()
	return err
}
