// Package daemon is a node of a cluster: it wires membership, the replicated
// journal, the store of files and the control API together, and carries out the jobs
// that the leader gives it.
//
//	d, err := daemon.Start(ctx, daemon.Config{Dir: "/var/lib/autoglm", Listen: "10.0.0.1:7400", TLS: "…/tls"})
//	err = d.Wait(ctx)     // until ctx ends; then jobs are given back and the others told
//
// # Who does what
//
// The leader (of cluster/replica) keeps the list of jobs and gives them to nodes as
// runtime/placement decides, by what the nodes say of their devices. The node's leases
// are the truth: it may refuse, and is asked again after a while. It carries the job
// out as autoglm build does: Supervisor, SearchAgent, Trials, and GPUWorkers on its own
// devices. Other nodes lend it theirs (spread.go): what it asked for and no single node
// had, and, where it takes as many as there are, whatever idles, until something else
// could have it. A lender starts GPUWorkers, which enlist with the Supervisor; trials
// that wait start there, and the final training's ring takes them in. A job that makes
// way for one of higher priority is stopped as by a drain, and goes on later from its
// journal. What a job held of memory is measured while it runs (memory.go): one that was
// given back goes where that much is free. The job's journal is a stream of the leader's: an event is committed when a majority of the voters
// has it. What the job's folder holds goes to Config.Copies nodes before the end of
// the stage or training that made it is committed.
//
// With Config.Bucket it goes to a bucket of an S3-compatible store as well, from which a
// file comes that no node has any more. A store in trouble is tried again and again, and
// holds up no job.
//
// # When something is lost
//
//	the leader       jobs go on; their nodes' next commits wait for the next leader
//	a lender         what it ran is run elsewhere, from its last checkpoint; a ring goes on without it
//	a job's node     the leader gives the job, under the next epoch, to another, which lays its folder out
//	                 again and goes on from the journal: what finished is not done again
//	a paused node    that wakes up commits nothing more: its epoch is not the job's any longer
//	a majority       jobs wait, nothing that was committed is lost
//
// # On disk
//
//	DIR/node.json gossip-keys.json crl.pem journal/ files/ jobs/ID/ uploads/ID/
//
// Files and folders that no job needs any more are removed within the hour.
package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/cluster/bucket"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/cluster/remote"
	"github.com/open-autoglm/autoglm/cluster/replica"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/step"
)

// Config of a node.
type Config struct {
	Dir        string            // what the node keeps
	Listen     string            // host:port, of TCP and of UDP
	Advertise  string            // host:port under which others reach it; Listen when empty
	Name       string            // unique in the cluster; the host's when empty
	Join       []string          // see cluster.Config.Seeds
	Labels     map[string]string //
	TLS        string            // folder of the node's certificate; empty speaks plaintext
	CA         string            // folder of the authority, which lets machines with a token in; may be empty
	Insecure   bool              // listen beyond loopback without certificates
	Copies     int               // nodes that hold what a job must not lose; 0 is 2
	AllowSteps bool              // jobs may run programs of their users'
	Quota      int64             // of the store of files, bytes; 0 is no bound
	Reserve    int64             // bytes of the host's memory that jobs leave to others
	Bucket     bucket.Config     // that keeps what a job must not lose too; none without a URL
	Software   string            // this program's version
	Log        func(text string) `json:"-"` // what happens, a line each; calls overlap; may be nil
	ActorLog   io.Writer         `json:"-"` // failures of actors; may be nil

	Locks   string                 // folder of the leases; device.LockDir when empty
	Sources func() []device.Source `json:"-"` // of the machine; nil is the machine's
	Worker  func() *exec.Cmd       `json:"-"` // makes a device's process; nil is this program's own
	Timing  replica.Timing         // of elections
}

// Daemon is a node that runs.
type Daemon struct {
	cfg        Config
	port       *port.Port
	id         *cert.Identity // nil speaks plaintext
	members    *cluster.Members
	store      *replica.Store
	files      *files.Store
	depot      *depot // nil without a bucket
	hands      *hands
	system     *actor.ActorSystem
	remote     *remote.Remote
	rings      *rings
	relay      *worker.Relay
	client     *http.Client
	h2         *http.Transport // for calls over gRPC that are passed on
	server     *http.Server
	lock       *os.File
	ctx        context.Context
	cancel     context.CancelFunc
	wg         sync.WaitGroup // goroutines that end with ctx
	drained    chan struct{}  // closed by Drain
	complaints *complaints
	changed    chan struct{} // buffered, 1: there is news
	full       chan struct{} // buffered, 1: the store of files wants room

	mu      sync.Mutex
	chief   *chief // nil while another node leads
	machine device.Machine
	looked  time.Time
	once    sync.Once
}

var replicaStale = replica.ErrStale

// farewell bounds what a stopping node waits for.
const farewell = 10 * time.Second

// Start begins. Errors are of this machine and its configuration; other nodes are
// looked for while it runs.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	if cfg.Copies == 0 {
		cfg.Copies = 2
	}
	id, err := identity(cfg)
	if err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, drained: make(chan struct{}), changed: make(chan struct{}, 1), full: make(chan struct{}, 1)}
	d.complaints = newComplaints(d.say)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if d.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := d.start(id); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// identity is the node's certificate; nil where plaintext is allowed.
func identity(cfg Config) (*cert.Identity, error) {
	if cfg.TLS != "" {
		id, err := cert.Load(cfg.TLS)
		if err != nil {
			return nil, err
		}
		if id.Role != cert.Node {
			return nil, fmt.Errorf("%s is the certificate of %s with the role %s; a node needs one with the role node: autoglm ca issue HOST", cfg.TLS, id.Name, id.Role)
		}
		return id, nil
	}
	if cfg.CA != "" {
		return nil, errors.New("--ca needs a certificate of the node's own: autoglm ca issue HOST --out DIR, then --tls DIR")
	}
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("--listen %q: %w; give HOST:PORT", cfg.Listen, err)
	}
	if ip := net.ParseIP(host); !cfg.Insecure && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("without certificates anybody who reaches %s could run jobs there: make some (autoglm ca init; autoglm ca issue %s --out DIR; --tls DIR), or say --insecure in a network that you trust", cfg.Listen, host)
	}
	return nil, nil
}

// lockDir keeps a second node out of the folder.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another node; stop it, or name another folder with --data", dir)
	}
	return f, nil
}

func (d *Daemon) start(id *cert.Identity) error {
	d.id = id
	if err := d.loadList(); err != nil {
		return err
	}
	err := step.Clear(filepath.Join(d.cfg.Dir, "jobs")) // of this node before it was killed
	if err != nil {
		return err
	}
	if d.files, err = files.New(filepath.Join(d.cfg.Dir, "files"), d.cfg.Quota); err != nil {
		return err
	}
	d.files.Liar = func(holder string, ref files.Ref) {
		d.say("%s sent other bytes than those of file %s: see to that machine's disk and memory", strings.TrimSuffix(holder, "/internal/files"), ref.Hash[:12])
	}
	d.port, err = port.Listen(port.Config{Listen: d.cfg.Listen, Identity: id, Refused: d.refused})
	if err != nil {
		return err
	}
	d.client, d.h2 = newClient(d.port.Dial), newH2(d.port.Dial)
	if d.cfg.Bucket.URL != "" {
		b, err := bucket.Open(d.cfg.Bucket)
		if err != nil {
			return err
		}
		d.depot = newDepot(d, b)
	}
	d.hands = newHands(d)
	if d.cfg.CA != "" {
		ca, err := cert.LoadCA(d.cfg.CA)
		if err != nil {
			return err
		}
		cluster.ServeJoin(d.port, ca, func(from net.Addr, err error) {
			if err != nil {
				d.complaints.add("join"+reason(err), fmt.Sprintf("join: %v: %v", from, err))
			} else {
				d.say("join: %v was given a certificate", from)
			}
		})
	}
	d.members, err = cluster.Start(d.ctx, cluster.Config{
		Dir: d.cfg.Dir, Port: d.port, Advertise: d.cfg.Advertise, Name: d.cfg.Name, Seeds: d.cfg.Join, Labels: d.cfg.Labels,
		Software: d.cfg.Software, Card: d.card,
		Events: cluster.Events{
			Joined: func(m cluster.Member) { d.say("node %s joined (%s)", m.Name, m.Addr); d.change(); d.nudge() },
			Gone: func(m cluster.Member, why string) {
				d.say("node %s is gone: %s", m.Name, why)
				d.lost(m)
				d.nudge()
			},
			Warn: func(about, _ string, err error) { d.complain(about, err) },
		},
	})
	if err != nil {
		return err
	}
	self := d.members.Self()
	d.system = node.NewSystem(d.cfg.ActorLog)
	d.remote, err = remote.Start(d.system, remote.Config{
		Port: d.port, Addr: self.Addr, Boot: self.Boot, Kinds: actors.Kinds(),
		Refused: func(from string, why error) { d.complain("actors: refused "+from, why) },
		Broken:  d.broken,
	})
	if err != nil {
		return err
	}
	d.store, err = replica.Open(replica.Config{
		Dir: filepath.Join(d.cfg.Dir, "journal"), Port: d.port, Node: self.ID, Addr: self.Addr, Found: len(d.cfg.Join) == 0,
		Candidates: d.candidates, Timing: d.cfg.Timing,
		Events: replica.Events{
			Leading: d.lead, Following: d.follow,
			Rebuilt: func(why string) {
				d.say("the journal's copy was damaged (%s); it is set aside and made anew from the others", why)
			},
			Warn: func(err error) { d.say("journal: %v", err) },
		},
	})
	if err != nil {
		return err
	}
	d.port.Handle(watchProtocol, cert.Node, d.watched)
	d.rings = newRings(d.port, self.Addr)
	d.port.Handle(ringProtocol, cert.Node, d.rings.serve)
	if d.relay, err = worker.NewRelay(d.rings); err != nil {
		return err
	}
	d.server = &http.Server{Handler: d.routes(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: nil}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	d.server.Protocols = &protocols
	web := d.port.HTTP()
	d.spawn(func() { _ = d.server.Serve(web) })
	d.spawn(d.port.Serve)
	d.spawn(d.publish)
	d.spawn(d.watch)
	d.spawn(d.tidy)
	d.spawn(d.pullLists)
	if d.depot != nil {
		d.spawn(d.depot.run)
	}
	return nil
}

// spawn runs f on a goroutine that close waits for.
func (d *Daemon) spawn(f func()) { d.wg.Go(f) }

func (d *Daemon) say(format string, a ...any) {
	if d.cfg.Log != nil {
		d.cfg.Log(fmt.Sprintf(format, a...))
	}
}

// Addr is where the node is reached.
func (d *Daemon) Addr() string { return d.members.Self().Addr }

// ID is the node's, Cluster the cluster's, empty before it has joined.
func (d *Daemon) ID() string { return d.members.Self().ID }

// Cluster is the id of the cluster, empty before the node has joined one.
func (d *Daemon) Cluster() string { return d.members.Cluster() }

// Ready waits until the node belongs to a cluster.
func (d *Daemon) Ready(ctx context.Context) error { return d.members.Ready(ctx) }

// news is what a node publishes of itself.
type news struct {
	Server   string  `msgpack:"s"`           // of the replica
	Leader   string  `msgpack:"l,omitempty"` // id of the leader that this node knows, and its term
	Term     uint64  `msgpack:"t,omitempty"`
	Load     float64 `msgpack:"o"`
	Jobs     int     `msgpack:"j"`
	Lent     int     `msgpack:"u,omitempty"` // jobs of other nodes that it lends devices to
	Free     int     `msgpack:"f"`
	Memory   int64   `msgpack:"m,omitempty"` // bytes of the host's that are available
	Card     uint32  `msgpack:"c"`           // sum of the card: a change says that it is to be read again
	Held     []byte  `msgpack:"h,omitempty"` // a bit for each device of the card, the lowest first, as far as they are set
	Draining bool    `msgpack:"d,omitempty"`
	Steps    bool    `msgpack:"p,omitempty"` // it runs programs of jobs' users
	Revoked  uint64  `msgpack:"r,omitempty"` // number of the list of revoked certificates
}

func decodeNews(b []byte) (news, error) {
	var n news
	if len(b) == 0 {
		return n, errors.New("no news")
	}
	err := msgpack.Unmarshal(b, &n)
	return n, err
}

const publishEvery = time.Second

// publish tells the others what this node is and does, when it changed.
func (d *Daemon) publish() {
	var last string
	var available int64
	for {
		d.hands.measure()
		available = steadily(available, d.leaves(device.Memory()), d.inventory().TotalBytes)
		n := news{Memory: available, Server: d.store.ServerID(), Load: load(), Card: crc32.ChecksumIEEE(d.card()), Steps: d.cfg.AllowSteps}
		n.Free, n.Held = d.free()
		if d.id != nil {
			_, n.Revoked = d.id.Revocations()
		}
		d.hands.mu.Lock()
		n.Jobs, n.Lent, n.Draining = len(d.hands.running), len(d.hands.lent), d.hands.draining
		d.hands.mu.Unlock()
		if term := d.store.Term(); term > 0 {
			n.Leader, n.Term = d.members.Self().ID, term
		}
		if b, err := msgpack.Marshal(n); err == nil && string(b) != last {
			last = string(b)
			_ = d.members.Publish(b)
		}
		select {
		case <-d.changed:
		case <-time.After(publishEvery):
		case <-d.ctx.Done():
			return
		}
	}
}

// change has news published at once.
func (d *Daemon) change() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// load is the machine's runnable processes per processor over a minute, to a tenth,
// so that idle machines have no news.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	f, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	if err != nil {
		return 0
	}
	return float64(int(10*f/float64(runtime.NumCPU()))) / 10
}

// lookAgain is how long an inventory is good for.
const lookAgain = 10 * time.Second

// inventory is the machine's, as it was within lookAgain.
func (d *Daemon) inventory() device.Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.looked) > lookAgain {
		m, err := node.Scan(d.cfg.Sources)
		if err != nil {
			return d.machine
		}
		d.machine, d.looked = m, time.Now()
	}
	return d.machine
}

// maxHeld bounds news.Held, bytes: news must be small. Of devices beyond it nobody
// hears that they are held, and the node refuses.
const maxHeld = 96

// free counts the devices that nobody holds, and says which are held.
func (d *Daemon) free() (int, []byte) {
	m := d.inventory()
	l, err := device.OpenLeases(d.locks())
	if err != nil {
		return 0, nil
	}
	holders, err := l.Holders(m.Devices)
	if err != nil {
		return 0, nil
	}
	var held []byte
	for i, v := range m.Devices {
		if _, ok := holders[v.ID]; ok && i < 8*maxHeld {
			held = append(held, make([]byte, max(0, i/8+1-len(held)))...)
			held[i/8] |= 1 << (i % 8)
		}
	}
	return len(m.Devices) - len(holders), held
}

// card is the node's device.Machine as JSON, of what placement goes by; what changes
// all the time is rounded.
func (d *Daemon) card() []byte {
	m := d.inventory()
	m.Notes, m.Devices = nil, slices.Clone(m.Devices)
	m.MemoryBytes = d.leaves(cmp.Or(m.TotalBytes, m.MemoryBytes)) // what is available is news
	for i := range m.Devices {
		v := &m.Devices[i]
		v.Caches, v.Siblings, v.Processes, v.Celsius = nil, nil, nil, 0
		v.UsedBytes = v.UsedBytes >> 30 << 30
		v.Load = math.Round(10*v.Load) / 10
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}

// candidates are the members that said under which name they keep a copy, the
// longest there first.
func (d *Daemon) candidates() []replica.Candidate {
	all := d.members.News()
	self := d.members.Self()
	var out []replica.Candidate
	for _, m := range oldest(d.members.Members()) {
		server := ""
		if m.ID == self.ID {
			server = d.store.ServerID()
		} else if n, err := decodeNews(all[m.ID]); err == nil && !n.Draining {
			server = n.Server
		}
		if server != "" {
			out = append(out, replica.Candidate{Server: server, Addr: m.Addr})
		}
	}
	return out
}

func (d *Daemon) lead(term uint64) {
	c, err := d.newChief(term)
	if err != nil {
		d.say("leading failed: %v; another copy is tried", err)
		if err := d.store.Transfer(); err != nil {
			d.say("%v", err)
		}
		return
	}
	d.mu.Lock()
	d.chief = c
	d.mu.Unlock()
	d.change()
	d.say("this node leads (term %d)", term)
}

func (d *Daemon) follow() {
	d.mu.Lock()
	c := d.chief
	d.chief = nil
	d.mu.Unlock()
	if c != nil {
		c.close()
		d.say("this node no longer leads")
	}
}

func (d *Daemon) chiefNow() *chief {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.chief
}

// lost ends what waits for a node that is gone.
func (d *Daemon) lost(m cluster.Member) {
	if d.remote != nil { // the first members come before
		d.remote.Lost(life(m))
	}
}

// broken has the cluster look after a node whose connection of actors broke: that comes
// long before gossip misses it.
func (d *Daemon) broken(at string, _ error) {
	for _, m := range d.members.Members() {
		if life(m) == at && d.ctx.Err() == nil {
			d.members.Suspect(m.ID)
		}
	}
}

// life is where a member's actors are reached, as long as it lives.
func life(m cluster.Member) string { return remote.At(m.Addr, m.Boot) }

// nudge has the leader look at its jobs.
func (d *Daemon) nudge() {
	if c := d.chiefNow(); c != nil {
		c.look()
	}
}

// Drain gives this node's jobs back, takes no new ones, and has Wait return once
// they are given back.
func (d *Daemon) Drain() {
	d.hands.drain(errDraining)
	d.change()
	d.once.Do(func() { close(d.drained) })
}

// Wait runs until ctx ends or the node is drained: jobs are given back with what
// they have done, and the node says good-bye.
func (d *Daemon) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		d.hands.drain(errStopping)
	case <-d.drained:
		d.say("draining: jobs are given back")
	}
	done := make(chan struct{})
	go func() {
		d.hands.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(farewell):
		d.say("jobs were not given back within %v; the others take them over", farewell)
	}
	if d.chiefNow() != nil && len(d.store.Voters()) > 1 {
		_ = d.store.Transfer() // the others need no election
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return d.shut(func() error { return d.members.Leave(leave) })
}

// Close stops without a word: to the others it is a death.
func (d *Daemon) Close() error { return d.shut(d.members.Close) }

func (d *Daemon) shut(leave func() error) error {
	d.cancel()
	err := leave() // closes the port too
	d.hands.wg.Wait()
	return errors.Join(err, d.close())
}

// close ends what has begun.
func (d *Daemon) close() error {
	d.cancel()
	var errs []error
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	d.follow()
	if d.relay != nil {
		errs = append(errs, d.relay.Close())
	}
	if d.remote != nil {
		errs = append(errs, d.remote.Close())
	}
	if d.system != nil {
		d.system.Shutdown()
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.server == nil { // it had not begun
		if d.members != nil {
			errs = append(errs, d.members.Close())
		} else if d.port != nil {
			errs = append(errs, d.port.Close())
		}
	}
	d.wg.Wait()
	if d.client != nil {
		d.client.CloseIdleConnections()
		d.h2.CloseIdleConnections()
	}
	if d.depot != nil {
		d.depot.b.Close()
	}
	return errors.Join(append(errs, d.lock.Close())...)
}
