package replica

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Protocol is raft's name on the port.
const Protocol = "autoglm-raft/1"

// Config of a node's copy.
type Config struct {
	Dir   string
	Port  *port.Port // not serving yet
	Node  string     // id
	Addr  string     // host:port under which others reach the port
	Found bool       // this node made the cluster: its first copy begins with itself as the only voter

	// Candidates are the nodes that are there and may vote, this one included. The
	// leader asks twice a second; it must not block.
	Candidates func() []Candidate
	Events     Events
	Timing     Timing
}

// Candidate is a node that may vote, those that should come first.
type Candidate struct {
	Server string // of ServerID
	Addr   string
}

// Timing of elections; zero fields are the defaults.
type Timing struct {
	Heartbeat time.Duration // without one for so long a follower asks for votes; 700 ms
	Lease     time.Duration // a leader that reaches no majority for so long steps down; 500 ms
	Steer     time.Duration // between two looks at who should vote; 500 ms
}

// Events are called one at a time, in order; none may block for long or call Close.
// Any may be nil.
type Events struct {
	Leading   func(term uint64) // everything committed before is in the streams
	Following func()            // no longer leading
	Rebuilt   func(why string)  // the copy was damaged and begins anew
	Warn      func(error)
}

// Store is a node's copy, voting or not. All methods may be called from any
// goroutine.
type Store struct {
	cfg     Config
	server  string
	raft    *raft.Raft
	log     *diskLog
	trans   *raft.NetworkTransport
	streams *streams
	notify  chan bool
	stop    chan struct{}
	wg      sync.WaitGroup
	once    sync.Once
	marked  uint64 // of steer's goroutine: the index in markFile

	mu   sync.Mutex
	term uint64               // of this node's leadership, 0 while it does not lead
	said map[string]time.Time // raft's errors, by kind
}

const (
	idFile    = "id"
	applyTime = 10 * time.Second
)

// Open starts a copy. ErrLost when the only copy that there is is damaged.
func Open(cfg Config) (*Store, error) {
	if cfg.Timing.Heartbeat == 0 {
		cfg.Timing.Heartbeat = 700 * time.Millisecond
	}
	if cfg.Timing.Lease == 0 {
		cfg.Timing.Lease = min(500*time.Millisecond, cfg.Timing.Heartbeat)
	}
	if cfg.Timing.Steer == 0 {
		cfg.Timing.Steer = 500 * time.Millisecond
	}
	s := &Store{cfg: cfg, notify: make(chan bool, 16), stop: make(chan struct{}), said: map[string]time.Time{}}
	rebuilt, fresh, err := s.openDisk()
	if err != nil {
		return nil, err
	}
	if s.streams, err = newStreams(filepath.Join(cfg.Dir, "streams"), s.warn); err != nil {
		return nil, errors.Join(err, s.log.Close())
	}
	if err := s.start(cfg.Found && fresh && rebuilt == ""); err != nil {
		return nil, errors.Join(err, s.log.Close())
	}
	s.wg.Add(2)
	go s.watch(rebuilt)
	go s.steer()
	return s, nil
}

// openDisk opens the log, and begins a new generation where it is damaged.
func (s *Store) openDisk() (rebuilt string, fresh bool, err error) {
	dir := s.cfg.Dir
	path := filepath.Join(dir, idFile)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fresh = true
	case err != nil:
		return "", false, err
	default:
		s.server = strings.TrimSpace(string(b))
		if s.log, err = openLog(dir); err == nil {
			if err = whole(dir, s.log); err == nil {
				return "", false, nil
			}
			err = errors.Join(err, s.log.Close())
		}
		if only, why := alone(dir); only {
			return "", false, fmt.Errorf("%w: %s (%s)", ErrLost, err, why)
		}
		rebuilt = err.Error()
		aside := filepath.Join(dir, "damaged-"+time.Now().UTC().Format("20060102-150405"))
		if err := os.Mkdir(aside, 0o700); err != nil {
			return "", false, err
		}
		for _, name := range []string{"log", "snapshots", markFile, idFile} {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", false, err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", false, err
	}
	gen := make([]byte, 4)
	if _, err := rand.Read(gen); err != nil {
		return "", false, err
	}
	s.server = s.cfg.Node + "/" + hex.EncodeToString(gen)
	if s.log, err = openLog(dir); err != nil {
		return "", false, err
	}
	return rebuilt, fresh, durable.WriteFile(path, []byte(s.server+"\n"))
}

// ErrLost means that the journal is damaged and there is no other copy.
var ErrLost = errors.New("the only copy of the journal is damaged; bring it back with: autoglm restore")

// segment is how much of the log is allocated at a time, in bytes.
const segment = 16 << 20

// diskLog is raft's log on disk.
type diskLog struct {
	*wal.WAL
	meta *metadb.BoltMetaDB
}

// Close closes the meta data too, which WAL leaves open.
func (l *diskLog) Close() error { return errors.Join(l.WAL.Close(), l.meta.Close()) }

func openLog(dir string) (*diskLog, error) {
	path := filepath.Join(dir, "log")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	l := &diskLog{meta: &metadb.BoltMetaDB{}}
	var err error
	if l.WAL, err = wal.Open(path, wal.WithSegmentSize(segment), wal.WithMetaStore(l.meta), wal.WithLogger(hclog.NewNullLogger())); err != nil {
		return nil, errors.Join(err, l.meta.Close())
	}
	// The ends are read, so that damage is found here rather than by raft.
	for _, end := range []func() (uint64, error){l.FirstIndex, l.LastIndex} {
		i, err := end()
		if err == nil && i > 0 {
			err = l.GetLog(i, new(raft.Log))
		}
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

const markFile = "mark"

// whole tells whether the log still reaches as far as it was once seen to: raft-wal
// takes damage at its end for a write that a crash cut off, and cuts there.
func whole(dir string, l *diskLog) error {
	b, err := os.ReadFile(filepath.Join(dir, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mark, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return nil // a mark that a crash cut off says nothing
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if last == 0 {
		snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, hclog.NewNullLogger())
		if err != nil {
			return err
		}
		list, err := snaps.List()
		if err != nil {
			return err
		}
		if len(list) > 0 {
			last = list[0].Index
		}
	}
	if last < mark {
		return fmt.Errorf("the log ends at %d and was at %d", last, mark)
	}
	return nil
}

// setMark notes how far the log reaches.
func (s *Store) setMark() {
	i := s.raft.AppliedIndex()
	if i == s.marked {
		return
	}
	path := filepath.Join(s.cfg.Dir, markFile)
	if err := os.WriteFile(path+".tmp", []byte(strconv.FormatUint(i, 10)+"\n"), 0o600); err != nil {
		return // the old mark holds
	}
	if os.Rename(path+".tmp", path) == nil {
		s.marked = i
	}
}

const aloneFile = "alone"

// alone tells whether this copy was the only voter when it was last asked.
func alone(dir string) (bool, string) {
	_, err := os.Stat(filepath.Join(dir, aloneFile))
	return err == nil, "no other node has a copy"
}

// setAlone keeps, for a start with a damaged log, whether others have copies.
func (s *Store) setAlone(is bool) {
	path := filepath.Join(s.cfg.Dir, aloneFile)
	_, err := os.Stat(path)
	switch {
	case is && err != nil:
		err = durable.WriteFile(path, []byte("this copy is the only voter\n"))
	case !is && err == nil:
		err = os.Remove(path)
	default:
		return
	}
	if err != nil {
		s.warn(err)
	}
}

func (s *Store) start(bootstrap bool) error {
	logger := hclog.New(&hclog.LoggerOptions{Output: logSink{s}, Level: hclog.Error, DisableTime: true})
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(s.server)
	conf.HeartbeatTimeout, conf.ElectionTimeout = s.cfg.Timing.Heartbeat, s.cfg.Timing.Heartbeat
	conf.LeaderLeaseTimeout = s.cfg.Timing.Lease
	conf.CommitTimeout = 20 * time.Millisecond
	conf.MaxAppendEntries = 512
	conf.BatchApplyCh = true
	conf.SnapshotThreshold = 16384
	conf.SnapshotInterval = time.Minute
	conf.TrailingLogs = 8192
	conf.ShutdownOnRemove = false
	conf.NotifyCh = s.notify
	conf.Logger = logger
	snaps, err := raft.NewFileSnapshotStoreWithLogger(s.cfg.Dir, 2, logger)
	if err != nil {
		return err
	}
	s.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: logger, Stream: &layer{Listener: s.cfg.Port.Listener(Protocol, cert.Node), s: s, open: map[net.Conn]bool{}}, MaxPool: 3, Timeout: 5 * time.Second,
	})
	if bootstrap {
		only := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(s.cfg.Addr)}}}
		if err := raft.BootstrapCluster(conf, s.log, s.log, snaps, s.trans, only); err != nil {
			return errors.Join(err, s.trans.Close())
		}
		s.setAlone(true)
	}
	if s.raft, err = raft.NewRaft(conf, s.streams, s.log, s.log, snaps, s.trans); err != nil {
		return errors.Join(fmt.Errorf("replica: %w", err), s.trans.Close())
	}
	return nil
}

// layer is raft's network: the port. It closes what raft leaves open at its end.
type layer struct {
	net.Listener
	s *Store

	mu   sync.Mutex
	open map[net.Conn]bool // nil once it is closed
}

// taken is a connection that was accepted.
type taken struct {
	net.Conn
	l *layer
}

func (c taken) Close() error {
	c.l.mu.Lock()
	delete(c.l.open, c.Conn)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

func (l *layer) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	l.open[c] = true
	return taken{c, l}, nil
}

func (l *layer) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		_ = c.Close()
	}
	l.open = nil
	return err
}

func (l *layer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return l.s.cfg.Port.Dial(ctx, port.Call{Addr: string(addr), Protocol: Protocol})
}

func (l *layer) Addr() net.Addr { return advertised(l.s.cfg.Addr) }

type advertised string

func (a advertised) Network() string { return "tcp" }
func (a advertised) String() string  { return string(a) }

// logSink passes raft's errors on, of each kind one in a while: raft says again and
// again that a dead voter does not answer.
type logSink struct{ s *Store }

const sayAgain = 10 * time.Minute

func (l logSink) Write(b []byte) (int, error) {
	text := strings.TrimSpace(strings.TrimPrefix(string(b), "[ERROR] "))
	kind, _, _ := strings.Cut(text, ":")
	l.s.mu.Lock()
	last, ok := l.s.said[kind]
	quiet := ok && time.Since(last) < sayAgain
	if !quiet {
		l.s.said[kind] = time.Now()
	}
	l.s.mu.Unlock()
	if !quiet {
		l.s.warn(errors.New(text))
	}
	return len(b), nil
}

func (s *Store) warn(err error) {
	if s.cfg.Events.Warn != nil {
		s.cfg.Events.Warn(err)
	}
}

// ServerID names this copy to the leader; see Candidate.
func (s *Store) ServerID() string { return s.server }

// Leader is the server id and the address of who leads, as far as this copy knows;
// empty when it does not.
func (s *Store) Leader() (server, addr string) {
	a, id := s.raft.LeaderWithID()
	return string(id), string(a)
}

// Term is that of this node's leadership, 0 when it does not lead.
func (s *Store) Term() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term
}

// watch tells of leadership won and lost.
func (s *Store) watch(rebuilt string) {
	defer s.wg.Done()
	if rebuilt != "" && s.cfg.Events.Rebuilt != nil {
		s.cfg.Events.Rebuilt(rebuilt)
	}
	for {
		select {
		case leads := <-s.notify:
			s.set(leads)
		case <-s.stop:
			return
		}
	}
}

func (s *Store) set(leads bool) {
	var term uint64
	if leads {
		// What was committed before must be in the streams, and the term must be the
		// one that the barrier was written under.
		term = s.raft.CurrentTerm()
		if err := s.raft.Barrier(applyTime).Error(); err != nil || s.raft.CurrentTerm() != term {
			return // lost again; the next notice says so
		}
	}
	s.mu.Lock()
	was := s.term
	s.term = term
	s.mu.Unlock()
	if was != 0 && s.cfg.Events.Following != nil {
		s.cfg.Events.Following()
	}
	if term != 0 && s.cfg.Events.Leading != nil {
		s.cfg.Events.Leading(term)
	}
}

// Transfer hands leadership to another voter.
func (s *Store) Transfer() error { return s.raft.LeadershipTransfer().Error() }

// Voters lists the servers that vote, by address, as this copy knows them.
func (s *Store) Voters() []Candidate {
	f := s.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var out []Candidate
	for _, v := range f.Configuration().Servers {
		if v.Suffrage == raft.Voter {
			out = append(out, Candidate{string(v.ID), string(v.Address)})
		}
	}
	return out
}

// Streams lists the names of all streams that this copy has.
func (s *Store) Streams() []string { return s.streams.names() }

// Replay reads a stream as this copy has it: on a follower it may be behind.
func (s *Store) Replay(stream string, visit func(record []byte) error) error {
	return s.streams.replay(stream, visit)
}

// Delete drops a stream on all copies.
func (s *Store) Delete(stream string, term uint64) error {
	return s.apply(command{op: opDelete, term: term, stream: stream}).wait()
}

// Backup writes a snapshot of everything that is committed on this copy.
func (s *Store) Backup(w io.Writer) error {
	snap, err := s.streams.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Release()
	return snap.(*snapshot).write(w)
}

// Close stops; what is acknowledged is on the disk.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.stop)
		s.wg.Wait()
		err = errors.Join(s.raft.Shutdown().Error(), s.trans.Close(), s.log.Close())
		s.streams.close()
	})
	return err
}

// pending is a command on its way.
type pending struct {
	f   raft.ApplyFuture
	err error
}

func (s *Store) apply(c command) pending {
	if len(c.stream) == 0 || len(c.stream) > maxName {
		return pending{err: fmt.Errorf("a stream's name of %d bytes, 1 to %d are", len(c.stream), maxName)}
	}
	if len(c.record) > MaxRecord {
		return pending{err: fmt.Errorf("a record of %d bytes, at most %d", len(c.record), MaxRecord)}
	}
	if s.Term() != c.term || c.term == 0 {
		return pending{err: ErrStale}
	}
	return pending{f: s.raft.Apply(c.encode(), applyTime)}
}

// wait tells whether the command took effect. After an error other than ErrStale it
// may have, or may yet.
func (p pending) wait() error {
	if p.err != nil {
		return p.err
	}
	switch err := p.f.Error(); {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrStale, err)
	case err != nil:
		return err
	}
	if err, ok := p.f.Response().(error); ok {
		return err
	}
	return nil
}

// Log is one stream under one term. One goroutine appends.
type Log struct {
	s      *Store
	stream string
	term   uint64
	last   []pending // not waited for yet
}

// maxBehind bounds the records that nobody waited for.
const maxBehind = 1024

// Log opens a stream for the term in which this node leads.
func (s *Store) Log(stream string, term uint64) *Log { return &Log{s: s, stream: stream, term: term} }

// Append adds a record. With sync it, and all before it, is on the disks of a
// majority when Append returns nil; without, it is on its way, and what becomes of
// it shows in a later Append. ErrStale ends a Log.
func (l *Log) Append(record []byte, sync bool) error {
	p := l.s.apply(command{op: opAppend, term: l.term, stream: l.stream, record: record})
	if p.err != nil {
		return p.err
	}
	l.last = append(l.last, p)
	if sync || len(l.last) > maxBehind {
		return l.flush()
	}
	return nil
}

func (l *Log) flush() error {
	var err error
	for _, p := range l.last {
		if e := p.wait(); err == nil {
			err = e
		}
	}
	l.last = l.last[:0]
	return err
}

// Replay calls f with every record from the first on; f must not keep the slice.
func (l *Log) Replay(f func(record []byte) error) error {
	if err := l.flush(); err != nil {
		return err
	}
	return l.s.Replay(l.stream, f)
}

// Close waits for what is on its way.
func (l *Log) Close() error { return l.flush() }
