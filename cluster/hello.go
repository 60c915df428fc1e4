package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

// Versions of the protocols between nodes. Two nodes work together when their
// ranges meet, so that a cluster is upgraded node by node.
const (
	MinVersion = 1
	Version    = 1
)

const (
	helloProtocol = "autoglm-hello/1"
	helloTime     = 5 * time.Second
	clockSkew     = 30 * time.Second
)

// hello is what a node says of itself. A refusal is an answer.
type hello struct {
	Min, Max int
	Software string
	Cluster  string // empty when it belongs to none yet
	ID       string
	Boot     uint64
	Name     string
	Addr     string // under which others reach it
	Since    int64  // of its start, Unix milliseconds
	Now      int64  // its clock, Unix milliseconds
	Labels   map[string]string
	Card     []byte
	Keys     keySet // none from a node that has not joined

	Refusal string // the answer is no, and why
	Final   bool   // … and asking again won't help
}

// RefusedError is a node's answer that it won't have us, or ours that we won't have
// it.
type RefusedError struct {
	Addr  string
	Why   string
	Final bool // asking again won't help
}

func (e *RefusedError) Error() string { return e.Addr + " refuses: " + e.Why }

var errNotYet = errors.New("belongs to no cluster yet; the first node is started without --join")

func (m *Members) hello(withCard bool) hello {
	var card []byte
	if withCard && m.cfg.Card != nil {
		card = m.cfg.Card() // may look at devices: not under the lock
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return hello{
		Min: MinVersion, Max: Version, Software: m.cfg.Software, Cluster: m.kept.Cluster, ID: m.self.ID, Boot: m.self.Boot,
		Name: m.self.Name, Addr: m.self.Addr, Since: m.self.Since.UnixMilli(), Now: time.Now().UnixMilli(), Labels: m.self.Labels, Keys: m.keys,
		Card: card,
	}
}

func (h hello) member() Member {
	return Member{
		ID: h.ID, Boot: h.Boot, Name: h.Name, Addr: h.Addr, Software: h.Software, Version: min(h.Max, Version),
		Since: time.UnixMilli(h.Since), Labels: h.Labels,
	}
}

// valid refuses what no node says.
func (h hello) valid() error {
	if h.ID == "" || len(h.ID) > 64 || h.Boot == 0 || len(h.Name) > 255 || len(h.Labels) > 64 {
		return errors.New("a greeting without an id, a boot number or of endless length")
	}
	if _, _, err := net.SplitHostPort(h.Addr); err != nil {
		return fmt.Errorf("a greeting with the address %q", h.Addr)
	}
	return nil
}

// objection is why this node won't have the other, "" when it will; final when
// asking again won't help.
func (m *Members) objection(h hello) (why string, final bool) {
	if err := h.valid(); err != nil {
		return err.Error(), true
	}
	if h.Max < MinVersion || h.Min > Version {
		return fmt.Sprintf("%s speaks versions %d to %d of the node protocol (autoglm %s), %s speaks %d to %d (autoglm %s); upgrade one of them",
			h.Name, h.Min, h.Max, h.Software, m.self.Name, MinVersion, Version, m.cfg.Software), true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.ID == m.self.ID && h.Boot != m.self.Boot {
		return fmt.Sprintf("%s has this node's own id %s: its folder is a copy of this one's; remove node.json from the copy", h.Addr, h.ID), true
	}
	if h.Cluster != "" && m.kept.Cluster != "" && h.Cluster != m.kept.Cluster {
		return fmt.Sprintf("%s belongs to cluster %s, %s to cluster %s; to move a node, stop it and clear its folder", h.Name, h.Cluster, m.self.Name, m.kept.Cluster), true
	}
	if o, ok := m.alive[h.ID]; ok && o.Boot > h.Boot {
		return fmt.Sprintf("node %s was started again since, at %s", h.ID, o.Addr), true
	}
	for id, o := range m.alive {
		if id != h.ID && o.Name == h.Name {
			return fmt.Sprintf("the name %s is that of node %s at %s; give another with --name", h.Name, o.ID, o.Addr), true
		}
	}
	return "", false
}

// answer serves one greeting.
func (m *Members) answer(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(helloTime))
	var h hello
	if err := readFrame(c, &h); err != nil {
		if !errors.Is(err, io.EOF) {
			m.warn("greeting", c.RemoteAddr().String(), fmt.Errorf("%w; another version, or no autoglm node?", err))
		}
		return
	}
	a := m.hello(true)
	why, final := m.objection(h)
	if why == "" && a.Cluster == "" {
		why = errNotYet.Error()
	}
	if why == "" && m.twin(h) {
		why, final = fmt.Sprintf("node %s lives at another address than %s: its folder was copied; remove node.json from the copy", h.ID, h.Addr), true
	}
	if why != "" {
		if h.ID != m.self.ID {
			m.warn("greeting", h.Addr, errors.New(why))
		}
		_ = writeFrame(c, hello{Min: MinVersion, Max: Version, ID: m.self.ID, Boot: m.self.Boot, Name: m.self.Name, Addr: m.self.Addr, Refusal: why, Final: final})
		return
	}
	if h.Keys.Serial > 0 && h.Cluster == a.Cluster {
		if err := m.adopt(h.Keys); err != nil {
			m.warn("gossip keys", h.Addr, err)
		}
		a.Keys = m.keySet()
	}
	_ = writeFrame(c, a)
}

// twin tells whether a node that greets from a new address also lives at its old
// one.
func (m *Members) twin(h hello) bool {
	m.mu.Lock()
	o, ok := m.alive[h.ID]
	m.mu.Unlock()
	if !ok || o.Addr == h.Addr || h.ID == m.self.ID {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	a, err := m.exchange(ctx, o.Addr, "", true)
	return err == nil && a.ID == h.ID && a.Boot == o.Boot
}

// exchange sends a greeting and reads the answer, a refusal included. A probe asks
// without offering the keys.
func (m *Members) exchange(ctx context.Context, addr, host string, probe bool) (hello, error) {
	if m.cut(addr) {
		return hello{}, errCut
	}
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	c, err := m.cfg.Port.Dial(ctx, port.Call{Addr: addr, Host: host, Protocol: helloProtocol})
	if err != nil {
		return hello{}, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	mine := m.hello(false)
	if probe {
		mine.Keys = keySet{}
	}
	if err := writeFrame(c, mine); err != nil {
		return hello{}, fmt.Errorf("%s: %w", addr, cert.Explain(err))
	}
	var a hello
	if err := readFrame(c, &a); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			err = errors.New("hung up on the greeting: one of the two runs with --insecure, or it is not an autoglm node")
		}
		return hello{}, fmt.Errorf("%s: %w", addr, cert.Explain(err))
	}
	return a, nil
}

// greet exchanges greetings with the node at an address, whose certificate must
// name host (or the address's), and takes newer keys from it. The answer of this
// very node is errSelf.
func (m *Members) greet(ctx context.Context, addr, host string) (hello, error) {
	sent := time.Now()
	a, err := m.exchange(ctx, addr, host, false)
	if err != nil {
		return a, err
	}
	if a.ID == m.self.ID && a.Boot == m.self.Boot {
		return a, errSelf
	}
	if a.Refusal != "" {
		return a, &RefusedError{Addr: addr, Why: a.Refusal, Final: a.Final}
	}
	if why, final := m.objection(a); why != "" {
		return a, &RefusedError{Addr: m.self.Addr, Why: why, Final: final}
	}
	if a.Cluster == "" {
		return a, &RefusedError{Addr: addr, Why: errNotYet.Error()}
	}
	if err := m.belong(a); err != nil {
		return a, err
	}
	if name, _, err := net.SplitHostPort(a.Addr); err == nil && net.ParseIP(name) == nil {
		m.mu.Lock()
		m.hosts[a.ID] = name
		m.mu.Unlock()
	}
	round := time.Since(sent)
	if off := time.UnixMilli(a.Now).Sub(sent.Add(round / 2)); off.Abs() > clockSkew+round {
		m.warn("clock", a.Addr, fmt.Errorf("the clock of %s is %v off this one's; certificates and dates go by it: let both follow one time server", a.Name, off.Round(time.Second)))
	}
	return a, nil
}

var errSelf = errors.New("the address is this node's own")

// belong takes the cluster's id and keys from whoever let this node in.
func (m *Members) belong(a hello) error {
	m.mu.Lock()
	if m.kept.Cluster == "" {
		m.kept.Cluster = a.Cluster
		if err := m.kept.store(m.cfg.Dir); err != nil {
			m.kept.Cluster = ""
			m.mu.Unlock()
			return err
		}
	}
	m.mu.Unlock()
	return m.adopt(a.Keys)
}
