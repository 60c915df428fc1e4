package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

const gossipProtocol = "autoglm-gossip/1"

// gossipConfig is memberlist's for a network of one site: a join is seen by all
// within half a second, a death after some 4 s.
func gossipConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.ProbeInterval = 500 * time.Millisecond
	c.ProbeTimeout = 200 * time.Millisecond
	c.SuspicionMult = 3
	c.GossipInterval = 100 * time.Millisecond
	c.PushPullInterval = 5 * time.Second
	c.EnableCompression = false
	c.RequireNodeNames = true
	return c
}

// gossipName is a node's name in gossip: a restart is another node there.
func gossipName(id string, boot uint64) string { return id + "." + strconv.FormatUint(boot, 36) }

func parseGossipName(s string) (id string, boot uint64, err error) {
	id, b, ok := strings.Cut(s, ".")
	if !ok || id == "" {
		return "", 0, fmt.Errorf("%q is no node's name", s)
	}
	boot, err = strconv.ParseUint(b, 36, 64)
	return id, boot, err
}

// gossip starts memberlist under the keys that this node holds.
func (m *Members) gossip() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list != nil {
		return nil
	}
	ring, err := memberlist.NewKeyring(m.keys.Keys, m.keys.Keys[0])
	if err != nil {
		return err
	}
	c := gossipConfig()
	c.Name = gossipName(m.self.ID, m.self.Boot)
	c.Transport = m.transport
	c.Keyring = ring
	c.Label = m.kept.Cluster
	c.Delegate = m.delegate
	c.Events = m.delegate
	c.Logger = log.New(logWriter{m}, "", 0)
	m.delegate.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: c.RetransmitMult, NumNodes: m.delegate.nodes}
	host, number, err := net.SplitHostPort(m.self.Addr)
	if err != nil {
		return err
	}
	ip := net.ParseIP(host)
	if ip == nil {
		ips, err := net.LookupIP(host)
		if err != nil {
			return fmt.Errorf("advertised host %s: %w", host, err)
		}
		ip = ips[0]
	}
	c.AdvertiseAddr = ip.String()
	c.AdvertisePort, _ = strconv.Atoi(number)
	list, err := memberlist.Create(c)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	m.list, m.ring = list, ring
	return nil
}

// logWriter drops memberlist's remarks; what matters of them comes as events. Its
// errors are kept as warnings.
type logWriter struct{ m *Members }

func (w logWriter) Write(b []byte) (int, error) {
	if s := strings.TrimSpace(string(b)); strings.HasPrefix(s, "[ERR]") {
		w.m.warn("gossip", "", errors.New(strings.TrimPrefix(s, "[ERR] ")))
	}
	return len(b), nil
}

// transport carries memberlist over the port.
type transport struct {
	m       *Members
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

func newTransport(m *Members) *transport {
	t := &transport{m: m, packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn), done: make(chan struct{})}
	m.cfg.Port.Handle(gossipProtocol, cert.Node, func(c net.Conn) {
		select {
		case t.streams <- c:
		case <-t.done:
			c.Close()
		}
	})
	t.wg.Add(1)
	go t.read()
	return t
}

// read takes packets until the port closes.
func (t *transport) read() {
	defer t.wg.Done()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := t.m.cfg.Port.Packets().ReadFromUDP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n == 0 || t.m.cut(from.String()) {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.done:
		default: // overrun: gossip says it again
		}
	}
}

func (t *transport) FinalAdvertiseAddr(ip string, number int) (net.IP, int, error) {
	return net.ParseIP(ip), number, nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if t.m.cut(a.Addr) {
		return time.Now(), nil
	}
	to, err := net.ResolveUDPAddr("udp", a.Addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.m.cfg.Port.Packets().WriteTo(b, to)
	return time.Now(), err
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if t.m.cut(a.Addr) {
		return nil, errCut
	}
	return t.m.cfg.Port.Dial(ctx, port.Call{Addr: a.Addr, Host: t.m.hostOf(a.Name), Protocol: gossipProtocol})
}

func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport: the port is its owner's to close.
func (t *transport) Shutdown() error {
	t.once.Do(func() { close(t.done) })
	return nil
}

// delegate hears memberlist. Its methods run under memberlist's locks and only
// copy.
type delegate struct {
	m     *Members
	queue *memberlist.TransmitLimitedQueue

	mu      sync.Mutex
	count   int
	hints   []hint
	wake    chan struct{} // buffered, 1
	updates map[string]update
	own     []byte // the latest update of this node, encoded
	serial  uint64
}

// hint is what gossip says of a node.
type hint struct {
	id   string
	boot uint64
	addr string // IP and port
	host string // that its certificate names, where that is no IP
	here bool
	left bool // it said good-bye
}

// update is a node's latest small news.
type update struct {
	boot, serial uint64
	body         []byte
}

// Meta: u8 version | the advertised host where it is a name.
func (d *delegate) NodeMeta(int) []byte {
	meta := []byte{1}
	if host, _, err := net.SplitHostPort(d.m.self.Addr); err == nil && net.ParseIP(host) == nil && len(host) < 120 {
		meta = append(meta, host...)
	}
	return meta
}

func (d *delegate) nodes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(d.count, 1)
}

func (d *delegate) hear(n *memberlist.Node, here bool) {
	id, boot, err := parseGossipName(n.Name)
	if err != nil {
		return
	}
	h := hint{id: id, boot: boot, addr: n.Address(), here: here}
	if len(n.Meta) > 1 {
		h.host = string(n.Meta[1:])
	}
	d.mu.Lock()
	if here {
		d.count++
	} else {
		d.count--
	}
	d.hints = append(d.hints, h)
	d.mu.Unlock()
	d.signal()
}

func (d *delegate) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *delegate) NotifyJoin(n *memberlist.Node)  { d.hear(n, true) }
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.hear(n, false) }
func (d *delegate) NotifyUpdate(*memberlist.Node)  {}

func (d *delegate) take() []hint {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.hints
	d.hints = nil
	return h
}

// News: u8 version | u8 length of the id | id | u64 boot | u64 serial | body
//
// News of the last serial is a good-bye: memberlist does not say how a node went.
const (
	newsVersion = 1
	lastSerial  = math.MaxUint64
)

func encodeNews(id string, u update) []byte {
	b := []byte{newsVersion, byte(len(id))}
	b = append(b, id...)
	b = binary.LittleEndian.AppendUint64(b, u.boot)
	b = binary.LittleEndian.AppendUint64(b, u.serial)
	return append(b, u.body...)
}

func decodeNews(b []byte) (id string, u update, err error) {
	if len(b) < 2 || b[0] != newsVersion || len(b) < 2+int(b[1])+16 {
		return "", u, errors.New("not a node's news")
	}
	n := int(b[1])
	id, b = string(b[2:2+n]), b[2+n:]
	u.boot, u.serial = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	u.body = append([]byte(nil), b[16:]...)
	return id, u, nil
}

// news is one broadcast: a later one of the same node takes its place.
type news struct {
	id string
	b  []byte
}

func (n news) Invalidates(o memberlist.Broadcast) bool {
	other, ok := o.(news)
	return ok && other.id == n.id
}
func (n news) Message() []byte { return n.b }
func (n news) Finished()       {}

// note keeps news that is newer, and tells whether it was.
func (d *delegate) note(b []byte) bool {
	id, u, err := decodeNews(b)
	if err != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o, ok := d.updates[id]; ok && (o.boot > u.boot || o.boot == u.boot && o.serial >= u.serial) {
		return false
	}
	if _, ok := d.updates[id]; !ok && len(d.updates) > 4096 {
		return false // more nodes than any cluster has
	}
	d.updates[id] = u
	if u.serial == lastSerial {
		d.hints = append(d.hints, hint{id: id, boot: u.boot, left: true})
		d.signal()
	}
	return true
}

func (d *delegate) NotifyMsg(b []byte) {
	if d.note(b) {
		id, _, _ := decodeNews(b)
		d.queue.QueueBroadcast(news{id, append([]byte(nil), b...)})
	}
}

func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	if d.queue == nil {
		return nil
	}
	return d.queue.GetBroadcasts(overhead, limit)
}

// LocalState is this node's news, and to one who joins that of all.
//
//	repeated: u16 length, LE | news
func (d *delegate) LocalState(join bool) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []byte
	add := func(b []byte) {
		out = binary.LittleEndian.AppendUint16(out, uint16(len(b)))
		out = append(out, b...)
	}
	if d.own != nil {
		add(d.own)
	}
	if join {
		for id, u := range d.updates {
			if id != d.m.self.ID {
				add(encodeNews(id, u))
			}
		}
	}
	return out
}

func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	for len(b) >= 2 {
		n := int(binary.LittleEndian.Uint16(b))
		if len(b) < 2+n {
			return
		}
		d.note(b[2 : 2+n])
		b = b[2+n:]
	}
}
