package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/cluster/replica"
)

// chief is the leader's part, for one term: it keeps the jobs and gives them to
// nodes. What it knows it has from the streams, so that the next one knows the same.
type chief struct {
	d      *Daemon
	term   uint64
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kick   chan struct{} // buffered, 1: look at the queue

	mu       sync.Mutex
	reg      *registry
	regLog   *replica.Log
	logs     map[string]*stream // by job
	folders  map[string]*kept   // by job, as far as they were asked for
	missing  map[string]time.Time
	recalled time.Time         // when a loan was last called back
	refusals map[string]string // why no node takes a queued job, by job
	places   places
}

// stream is a job's journal at the leader.
type stream struct {
	log      *replica.Log
	lastE    uint64 // epoch and sequence of the last record
	lastS    uint64
	events   int
	changed  chan struct{} // closed and replaced when something is new
	progress map[int]json.RawMessage
	notices  []Notice // the newest
	told     int      // of them and those before
}

const streamOfJobs = "jobs"

func folderStream(id string) string { return "folder/" + id }

// newChief replays the streams. A damaged one ends the leadership, so that another
// copy is tried.
func (d *Daemon) newChief(term uint64) (*chief, error) {
	ctx, cancel := context.WithCancel(d.ctx)
	c := &chief{
		d: d, term: term, cancel: cancel, kick: make(chan struct{}, 1), reg: newRegistry(), regLog: d.store.Log(streamOfJobs, term),
		logs: map[string]*stream{}, folders: map[string]*kept{}, missing: map[string]time.Time{}, refusals: map[string]string{},
		places: newPlaces(),
	}
	err := c.regLog.Replay(func(b []byte) error {
		rec, err := decodeRecord(b)
		if err == nil {
			c.reg.apply(rec)
		}
		return err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	c.wg.Add(1)
	go c.run(ctx)
	return c, nil
}

// close ends the term here; requests under way end by their logs' errors.
func (c *chief) close() {
	c.cancel()
	c.mu.Lock()
	for _, s := range c.logs {
		close(s.changed)
		s.changed = nil
	}
	c.mu.Unlock()
	c.wg.Wait()
}

func (c *chief) look() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// commit appends a record of the stream of jobs and applies it; the lock is held.
func (c *chief) commit(rec record) error {
	rec.At = time.Now().UTC()
	b, err := rec.encode()
	if err != nil {
		return err
	}
	if err := c.regLog.Append(b, true); err != nil {
		return err
	}
	c.reg.apply(rec)
	if s := c.logs[rec.ID]; s != nil {
		c.tell(s)
	}
	c.look()
	return nil
}

// tell wakes who follows a job; the lock is held.
func (c *chief) tell(s *stream) {
	if s.changed != nil {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// errNoJob is the answer about a job that is not there.
var errNoJob = errors.New("no such job; autoglm jobs lists them")

// stream opens a job's journal; the lock is held.
func (c *chief) stream(id string) (*stream, error) {
	if s := c.logs[id]; s != nil {
		return s, nil
	}
	if c.reg.jobs[id] == nil {
		return nil, fmt.Errorf("%s: %w", id, errNoJob)
	}
	s := &stream{log: c.d.store.Log(jobStream(id), c.term), changed: make(chan struct{}), progress: map[int]json.RawMessage{}}
	err := s.log.Replay(func(b []byte) error {
		e, q, _, err := decodeEntry(b)
		s.lastE, s.lastS = e, q
		s.events++
		return err
	})
	if err != nil {
		return nil, err
	}
	c.logs[id] = s
	return s, nil
}

// submit enters a job whose files are here.
func (c *chief) submit(j Job) (Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j.ID = c.reg.newID()
	if err := c.commit(record{Op: opSubmit, ID: j.ID, Job: &j}); err != nil {
		return j, err
	}
	return *c.reg.jobs[j.ID], nil
}

// append adds records of a node's to a job's journal, each once.
func (c *chief) append(id string, epoch, seq uint64, body io.Reader) error {
	var recs [][]byte
	if err := readFrames(body, func(b []byte) error { recs = append(recs, b); return nil }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil || j.State != Running || j.Epoch != epoch {
		return errTaken
	}
	s, err := c.stream(id)
	if err != nil {
		return err
	}
	for i, rec := range recs {
		q := seq + uint64(i)
		if s.events > 0 && s.lastE == epoch && q <= s.lastS {
			continue // it was kept, and the answer was lost
		}
		if err := s.log.Append(encodeEntry(epoch, q, rec), i == len(recs)-1); err != nil {
			return err
		}
		s.lastE, s.lastS = epoch, q
		s.events++
	}
	c.tell(s)
	return nil
}

// read calls visit with each record of a job's journal from the n-th on. The lock
// is not held while it runs.
func (c *chief) read(id string, from int, visit func(rec []byte) error) error {
	c.mu.Lock()
	s, err := c.stream(id)
	if err == nil {
		err = s.log.Replay(func([]byte) error { return io.EOF }) // what is on its way is there
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	i := 0
	return c.d.store.Replay(jobStream(id), func(b []byte) error {
		i++
		if i <= from {
			return nil
		}
		_, _, rec, err := decodeEntry(b)
		if err != nil {
			return err
		}
		return visit(rec)
	})
}

// follow is what is new of a job since the n-th record, and what to wait for before
// asking again; nil when the term has ended.
func (c *chief) follow(id string) (j Job, events int, progress map[int]json.RawMessage, changed <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.stream(id)
	if err != nil {
		return j, 0, nil, nil, err
	}
	return *c.reg.jobs[id], s.events, maps.Clone(s.progress), s.changed, nil
}

// progress keeps what a trial measured last, for who follows.
func (c *chief) progress(id string, epoch uint64, seq int, line json.RawMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil || j.Epoch != epoch || j.State != Running {
		return
	}
	if s, err := c.stream(id); err == nil {
		s.progress[seq] = line
		c.tell(s)
	}
}

// notice keeps what a job's node said of it.
func (c *chief) notice(id string, epoch uint64, list []Notice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil || j.Epoch != epoch {
		return
	}
	if s, err := c.stream(id); err == nil {
		s.notices = newest(append(s.notices, list...))
		s.told += len(list)
		c.tell(s)
	}
}

// notices are those after the first told ones that are still kept; told then counts
// them too.
func (c *chief) notices(id string, told *int) []Notice {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.logs[id]
	if s == nil {
		return nil
	}
	n := min(s.told-*told, len(s.notices))
	*told = s.told
	return slices.Clone(s.notices[len(s.notices)-n:])
}

// end takes a node's word for how its job ended.
func (c *chief) end(id string, e endReport) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil || j.Epoch != e.Epoch || j.State != Running {
		return nil // it was heard already, or does not count
	}
	rec := record{Op: opEnd, ID: id, Epoch: e.Epoch, State: e.State, Why: e.Why, Most: c.places.memoryOf(j).most(e.Most)}
	c.places.freed(j, c.d.members.News()[j.Node], time.Now())
	if e.State == Queued {
		if rec.Op, rec.State = opReturn, ""; j.Stopping == "" {
			c.places.refuse(id, j.Node, e.Why, time.Now())
		}
		return c.commit(rec)
	}
	c.places.forget(id)
	c.forgetMissing(id)
	return c.commit(rec)
}

// stop cancels a job: at once where it waits, else when its node has stopped it.
func (c *chief) stop(id string) (Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil {
		return Job{}, fmt.Errorf("%s: %w", id, errNoJob)
	}
	if !j.State.Over() && !j.Cancel {
		if err := c.commit(record{Op: opCancel, ID: id}); err != nil {
			return *j, err
		}
	}
	return *j, nil
}

// remove forgets a job that is over, with its journal and its folder.
func (c *chief) remove(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil {
		return fmt.Errorf("%s: %w", id, errNoJob)
	}
	if !j.State.Over() {
		return &StatusError{http.StatusConflict, fmt.Sprintf("%s is %s; cancel it first", id, j.State)}
	}
	if err := c.commit(record{Op: opRemove, ID: id}); err != nil {
		return err
	}
	delete(c.logs, id)
	delete(c.folders, id)
	c.places.forget(id)
	return errors.Join(c.d.store.Delete(jobStream(id), c.term), c.d.store.Delete(folderStream(id), c.term))
}

// folder is what a job's folder holds, by path.
type folder map[string]files.Ref

// change of a folder: one record of its stream.
type change struct {
	Put   folder   `json:"put,omitempty"`
	Drop  []string `json:"drop,omitempty"`
	Trial string   `json:"trial,omitempty"` // whose files these are, if they are a trial's
	Fence uint64   `json:"fence,omitempty"` // its epoch: the highest that was seen counts
}

// kept is what a folder's stream adds up to.
type kept struct {
	files  folder
	fences map[string]uint64 // by trial
}

func (k *kept) apply(c change) {
	maps.Copy(k.files, c.Put)
	for _, p := range c.Drop {
		delete(k.files, p)
	}
	if c.Trial != "" {
		k.fences[c.Trial] = max(k.fences[c.Trial], c.Fence)
	}
}

// folder of a job; the lock is held.
func (c *chief) folder(id string) (*kept, error) {
	if k := c.folders[id]; k != nil {
		return k, nil
	}
	k := &kept{folder{}, map[string]uint64{}}
	err := c.d.store.Replay(folderStream(id), func(b []byte) error {
		var ch change
		if err := json.Unmarshal(b, &ch); err != nil {
			return err
		}
		k.apply(ch)
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.folders[id] = k
	return k, nil
}

func (c *chief) folderOf(id string) (folder, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reg.jobs[id] == nil {
		return nil, fmt.Errorf("%s: %w", id, errNoJob)
	}
	k, err := c.folder(id)
	if err != nil {
		return nil, err
	}
	return maps.Clone(k.files), nil
}

// lay records what one of a job's nodes has kept of its folder.
func (c *chief) lay(id string, epoch uint64, ch change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil || j.State != Running || j.Epoch != epoch {
		return errTaken
	}
	k, err := c.folder(id)
	if err != nil {
		return err
	}
	if ch.Trial != "" && ch.Fence < k.fences[ch.Trial] {
		return errTaken
	}
	b, err := json.Marshal(ch)
	if err != nil {
		return err
	}
	if err := c.d.store.Log(folderStream(id), c.term).Append(b, true); err != nil {
		return err
	}
	k.apply(ch)
	return nil
}

// Times of the leader's loop.
const (
	queueEvery   = 500 * time.Millisecond
	missingAfter = 3 * time.Second // a node that does not know of a job it was given
	lookTime     = time.Second     // for all nodes together to say what they do: a hung one holds up the others' jobs
)

// run gives out what waits and takes back what nobody does.
func (c *chief) run(ctx context.Context) {
	defer c.wg.Done()
	tick := time.NewTicker(queueEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.kick:
		}
		c.check(ctx)
		c.assign(ctx)
		c.spread(ctx)
	}
}

func (c *chief) jobs() []Job {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.reg.list()
	for i := range out {
		if why := c.refusals[out[i].ID]; out[i].State == Queued && why != "" {
			out[i].Why = why
		}
	}
	return out
}

// check takes back the jobs of nodes that are gone or know nothing of them, with what
// is lent to them, and stops those that are to be cancelled, and loans of no job.
func (c *chief) check(ctx context.Context) {
	jobs := slices.DeleteFunc(c.jobs(), func(j Job) bool { return j.State != Running })
	stop := map[string][]assignment{} // by node that is to be asked
	for _, j := range jobs {
		for _, a := range given(&j) {
			stop[a.node] = append(stop[a.node], a.assignment)
		}
	}
	for id, b := range c.d.members.News() {
		if n, err := decodeNews(b); err == nil && n.Lent > 0 && stop[id] == nil {
			stop[id] = []assignment{}
		}
	}
	running := c.running(ctx, stop)
	for _, j := range jobs {
		for _, a := range given(&j) {
			switch why := c.trouble(running, a); {
			case why == "":
			case a.Home == "":
				c.takeBack(j, why)
			default:
				if err := c.left(j.ID, leftReport{j.Epoch, a.node, why}); err == nil {
					c.d.say("job %s: %s; it goes on without its devices", j.ID, why)
				}
			}
		}
	}
	c.running(ctx, c.strays(running))
}

// part of a running job: what one node was given of it. Why says that it is to end.
type part struct {
	assignment
	node, name string
}

// given is the parts of a job, the loans first.
func given(j *Job) []part {
	var out []part
	for _, l := range j.Lent {
		out = append(out, part{assignment{ID: j.ID, Epoch: j.Epoch, Why: l.Stopping, Home: j.Node}, l.Node, l.NodeName})
	}
	own := part{assignment{ID: j.ID, Epoch: j.Epoch, Why: j.Stopping}, j.Node, j.NodeName}
	if j.Cancel {
		own.Why = errCancelled.Error()
	}
	return append(out, own)
}

// running asks nodes, all at once, what they have in hand, and tells them first to end
// what has a Why. A node that does not answer in time is left out: gossip or the next
// look will tell.
func (c *chief) running(ctx context.Context, stop map[string][]assignment) map[string][]assignment {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string][]assignment{}
	for node, all := range stop {
		m, alive := c.d.members.Member(node)
		if !alive {
			continue
		}
		wg.Go(func() {
			for _, a := range all {
				if a.Why != "" {
					_ = c.d.ask(ctx, m.Addr, "/internal/stop", a, nil)
				}
			}
			var now []assignment
			if c.d.get(ctx, m.Addr, "/internal/running", &now) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[node] = now
		})
	}
	wg.Wait()
	return out
}

// strays are loans that nodes have in hand and the list of jobs has not: their job is
// over or another node's, or the word that they had begun was lost. They are to end.
func (c *chief) strays(running map[string][]assignment) map[string][]assignment {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string][]assignment{}
	for node, now := range running {
		for _, a := range now {
			if j := c.reg.jobs[a.ID]; a.Home != "" && (j == nil || j.State != Running || j.Epoch != a.Epoch || j.lent(node) == nil) {
				a.Why = "the job no longer has them"
				out[node] = append(out[node], a)
			}
		}
	}
	return out
}

// trouble says why a node no longer does what it was given, "" while it does, or while
// that is not known.
func (c *chief) trouble(running map[string][]assignment, a part) string {
	node, name := a.node, a.name
	if _, alive := c.d.members.Member(node); !alive {
		return "node " + name + " is gone"
	}
	now, answered := running[node]
	if !answered {
		return ""
	}
	i := slices.IndexFunc(now, func(n assignment) bool {
		return n.ID == a.ID && n.Epoch == a.Epoch && (n.Home != "") == (a.Home != "")
	})
	key := a.ID
	if a.Home != "" {
		key = loan(a.ID, node)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= 0 {
		delete(c.missing, key)
		if a.Home == "" {
			c.places.holds[a.ID] = now[i].Devices
		}
		c.places.memory[key] = c.places.memory[key].most(now[i].Memory)
		return ""
	}
	since, ok := c.missing[key]
	if !ok {
		since = time.Now()
		c.missing[key] = since
	}
	if time.Since(since) <= missingAfter {
		return ""
	}
	delete(c.missing, key)
	return "node " + name + " no longer works on it"
}

// forgetMissing drops what was not found of a job and its loans; the lock is held.
func (c *chief) forgetMissing(id string) {
	maps.DeleteFunc(c.missing, func(what string, _ time.Time) bool { return isOf(what, id) })
}

func (c *chief) takeBack(j Job, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetMissing(j.ID)
	delete(c.places.holds, j.ID)
	if err := c.commit(record{Op: opReturn, ID: j.ID, Epoch: j.Epoch, Why: why, Most: c.places.memoryOf(&j)}); err == nil {
		c.d.say("job %s: %s; it goes on elsewhere", j.ID, why)
	}
}

// assignment is a job in a node's hands.
type assignment struct {
	ID    string `json:"id"`
	Epoch uint64 `json:"epoch"`
	Why   string `json:"why,omitempty"`
	Job   *Job   `json:"job,omitempty"`

	Devices    []string `json:"devices,omitempty"`    // chosen by the leader; in a node's answer, those it has leased
	Constraint string   `json:"constraint,omitempty"` // of these devices, where the job's own is of several nodes'
	Asked      bool     `json:"asked,omitempty"`      // the devices are lent, and the job's constraint asks for them
	Home       string   `json:"home,omitempty"`       // the devices are lent: life of the node that carries the job out
	Memory     Memory   `json:"memory,omitzero"`      // in a node's answer
}

// fit is a node's answer whether it could take a job now.
type fit struct {
	OK  bool   `json:"ok"`
	Why string `json:"why,omitempty"`
}

// ask posts to a node, bounded.
func (d *Daemon) ask(ctx context.Context, addr, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return call(ctx, d.client, http.MethodPost, "http://"+addr+path, in, out)
}

func (d *Daemon) get(ctx context.Context, addr, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return call(ctx, d.client, http.MethodGet, "http://"+addr+path, nil, out)
}

const askTime = 5 * time.Second
