package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// hands is a node's part: the jobs that it carries out, and those of other nodes that
// it lends devices to.
type hands struct {
	d  *Daemon
	wg sync.WaitGroup

	mu       sync.Mutex
	running  map[string]*held // by job
	lent     map[string]*held // by job
	draining bool
	idle     int64 // bytes that this process held with nothing in hand, the fewest seen
}

// held is a job in hand.
type held struct {
	assignment
	cancel    context.CancelCauseFunc
	done      chan struct{}
	node      *node.Node   // once it is open; nil for a loan
	processes func() []int // once it is open
}

// Why a job in hand ends before it is done.
var (
	errCancelled = errors.New("cancelled")
	errDraining  = errors.New("the node is drained")
	errStopping  = errors.New("the node stops")
)

func newHands(d *Daemon) *hands {
	return &hands{d: d, running: map[string]*held{}, lent: map[string]*held{}}
}

// of is the list that an assignment belongs to.
func (h *hands) of(a *assignment) map[string]*held {
	if a.Home != "" {
		return h.lent
	}
	return h.running
}

// all goes through what is in hand, the loans last; the lock is held.
func (h *hands) all() iter.Seq[*held] {
	return func(yield func(*held) bool) {
		for _, list := range []map[string]*held{h.running, h.lent} {
			for _, r := range list {
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (h *hands) list() []assignment {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []assignment{}
	for r := range h.all() {
		out = append(out, assignment{ID: r.ID, Epoch: r.Epoch, Devices: r.Devices, Home: r.Home, Memory: r.Memory})
	}
	return out
}

// busy tells whether a job's folder is in use.
func (h *hands) busy(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running[id] != nil || h.lent[id] != nil
}

// take begins a job; an older epoch of it that still runs is stopped first.
func (h *hands) take(a assignment) error {
	if a.Job == nil || a.ID == "" || strings.ContainsAny(a.ID, "/.") {
		return errors.New("an assignment without a job")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return errDraining
	}
	list := h.of(&a)
	if old := list[a.ID]; old != nil && old.Epoch >= a.Epoch {
		return nil // it was heard already
	}
	before := []*held{h.running[a.ID], h.lent[a.ID]} // of an earlier epoch, in the same folder
	ctx, cancel := context.WithCancelCause(h.d.ctx)
	r := &held{assignment: a, cancel: cancel, done: make(chan struct{})}
	list[a.ID] = r
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		defer close(r.done)
		for _, old := range before {
			if old != nil {
				old.cancel(errTaken)
				<-old.done
			}
		}
		if r.Home != "" {
			h.lend(ctx, r)
		} else {
			h.run(ctx, r)
		}
	}()
	return nil
}

// holds notes which devices a job has leased, for the leader, and what tells the
// processes that it computes in.
func (h *hands) holds(r *held, ds []device.Device, processes func() []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Devices, r.processes = nil, processes
	for _, v := range ds {
		r.Devices = append(r.Devices, v.ID)
	}
}

// stop ends a job in hand.
func (h *hands) stop(a assignment, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.of(&a)[a.ID]; r != nil && r.Epoch == a.Epoch {
		r.cancel(why)
	}
}

// drain gives all jobs back and takes none from now on.
func (h *hands) drain(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	for r := range h.all() {
		r.cancel(why)
	}
}

// run carries a job out and reports its end until the leader has heard it.
func (h *hands) run(ctx context.Context, r *held) {
	h.d.say("job %s: begins (attempt %d)", r.ID, r.Epoch)
	err := h.carry(ctx, r)
	state, why := ending(err, context.Cause(ctx))
	h.d.say("job %s: %s %s", r.ID, state, why)
	if errors.Is(err, errTaken) || errors.Is(context.Cause(ctx), errTaken) {
		h.forget(r)
		return
	}
	h.mu.Lock()
	most := r.Memory
	h.mu.Unlock()
	h.report(ctx, fmt.Sprintf("/internal/jobs/%s/end", r.ID), endReport{r.Epoch, state, why, most})
	h.forget(r)
}

// report tells the leader how something ended. The node may be stopping: the report
// has its own bound then.
func (h *hands) report(ctx context.Context, path string, what any) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(h.d.ctx, func() { time.AfterFunc(farewell, cancel) })
	defer stop()
	_ = h.d.toLeader(ctx, http.MethodPost, path, what, nil)
}

// forget takes a job out of the list, after its end was heard: until then the
// leader may ask.
func (h *hands) forget(r *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if list := h.of(&r.assignment); list[r.ID] == r {
		delete(list, r.ID)
	}
	go debug.FreeOSMemory() // for the next job, perhaps another program's
}

type endReport struct {
	Epoch uint64   `json:"epoch"`
	State JobState `json:"state"`
	Why   string   `json:"why,omitempty"`
	Most  Memory   `json:"most"`
}

// ending says what becomes of a job whose run ended so. A node's own trouble gives
// the job back: another node may do better.
func ending(err, cause error) (JobState, string) {
	switch {
	case err == nil:
		return Done, ""
	case errors.Is(cause, errCancelled):
		return Cancelled, ""
	case cause != nil:
		return Queued, cause.Error()
	case errors.Is(err, node.ErrInterrupted), errors.Is(err, device.ErrBusy), actors.DiskError(err), errors.Is(err, errHere), errors.Is(err, files.ErrQuota):
		return Queued, err.Error()
	}
	return Failed, err.Error()
}

// errHere marks trouble of this node, not of the job.
var errHere = errors.New("trouble of the node")

func (h *hands) carry(ctx context.Context, r *held) error {
	d := h.d
	dir := filepath.Join(d.cfg.Dir, "jobs", r.ID)
	m, err := d.openMirror(ctx, r, dir)
	if err != nil {
		return fmt.Errorf("%w: %w", errHere, err)
	}
	spec := r.Job.Spec
	if err := m.uploads(ctx, r.Job.Files, &spec); err != nil {
		return fmt.Errorf("%w: %w", errHere, err)
	}
	defer m.start(ctx)()
	pr := &progressSender{d: d, id: r.ID, epoch: r.Epoch}
	no := &noticeSender{d: d, id: r.ID, epoch: r.Epoch}
	n, err := node.Open(node.Options{
		Dir: dir, Spec: spec, Journal: &jobLog{d: d, ctx: ctx, id: r.ID, epoch: r.Epoch}, Folder: m, Log: d.cfg.ActorLog,
		AllowSteps: d.cfg.AllowSteps, Lease: d.lease("job "+r.ID, r.Devices, false), Constraint: r.Constraint, Sources: d.cfg.Sources, Worker: d.cfg.Worker,
		System: d.system, Name: supervisor(r.ID, r.Epoch), Across: d.rings.across, Relay: d.relay.At(),
		Events: actors.Events{Progress: func(m actors.Progress) {
			if kindOf(r.Devices) == device.GPU {
				h.saw(r, &m)
			}
			pr.send(m)
		}},
		Notice: no.send,
		Fallback: func(asked error, has []device.Device) {
			no.send(fmt.Sprintf("%v; going on with %d CPU core(s)", asked, len(has)))
		},
	})
	if err != nil {
		return err
	}
	h.holds(r, n.Devices(), n.Processes)
	h.mu.Lock()
	r.node = n
	h.mu.Unlock()
	d.change()
	defer d.change()
	if err := n.Run(ctx); err != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		return errors.Join(err, m.Keep(last))
	}
	return m.Keep(ctx)
}

// supervisor is the name of a job's Supervisor.
func supervisor(id string, epoch uint64) string { return fmt.Sprintf("job/%s/%d", id, epoch) }

// lend has a job of another node use devices of this one.
func (h *hands) lend(ctx context.Context, r *held) {
	h.d.say("job %s: lends it %s", r.ID, strings.Join(r.Devices, " "))
	err := h.serve(ctx, r)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	why := ""
	if err != nil {
		why = err.Error()
	}
	h.d.say("job %s: takes its devices back: %s", r.ID, why)
	h.report(ctx, fmt.Sprintf("/internal/jobs/%s/left", r.ID), leftReport{r.Epoch, h.d.members.Self().ID, why})
	h.forget(r)
}

// leftReport says that devices are no longer lent.
type leftReport struct {
	Epoch uint64 `json:"epoch"`
	Node  string `json:"node"`
	Why   string `json:"why,omitempty"`
}

// homeWithin bounds how long a job's Supervisor is waited for, which may lay a large
// folder out first.
const homeWithin = 2 * time.Minute

func (h *hands) serve(ctx context.Context, r *held) error {
	d := h.d
	dir := filepath.Join(d.cfg.Dir, "jobs", r.ID)
	m, err := d.openMirror(ctx, r, dir)
	if err != nil {
		return err
	}
	defer m.start(ctx)()
	g, err := node.OpenGuest(ctx, node.Options{
		Dir: dir, Spec: r.Job.Spec, Folder: m, Lease: d.lease("job "+r.ID, r.Devices, true), Constraint: r.Constraint, Sources: d.cfg.Sources, Worker: d.cfg.Worker,
		System: d.system, Across: d.rings.across, Relay: d.relay.At(), Self: d.members.Self().Name,
		Notice: func(text string) { d.say("job %s: %s", r.ID, text) },
	})
	if err != nil {
		return err
	}
	h.holds(r, g.Devices(), g.Processes)
	d.change()
	defer d.change()
	return g.Run(ctx, d.remote.PID(r.Home, supervisor(r.ID, r.Epoch)), r.Asked, homeWithin)
}

// progressSender passes on what trials measure, at most a few times a second each:
// a view wants the newest.
type progressSender struct {
	d     *Daemon
	id    string
	epoch uint64

	mu   sync.Mutex
	last map[int]time.Time
	busy bool
}

const progressEvery = 300 * time.Millisecond

// send implements actors.Events.Progress: it must not block.
func (p *progressSender) send(m actors.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = map[int]time.Time{}
	}
	if p.busy || time.Since(p.last[m.Seq]) < progressEvery {
		return
	}
	b, err := json.Marshal(m)
	if err != nil {
		return // a loss that is not a number has no JSON; the next one will
	}
	p.last[m.Seq], p.busy = time.Now(), true
	p.d.spawn(func() {
		defer func() {
			p.mu.Lock()
			p.busy = false
			p.mu.Unlock()
		}()
		ctx, cancel := context.WithTimeout(p.d.ctx, time.Second)
		defer cancel()
		_ = p.d.toLeader(ctx, http.MethodPost, fmt.Sprintf("/internal/jobs/%s/progress?epoch=%d&seq=%d", p.id, p.epoch, m.Seq), b, nil)
	})
}

// noticeSender passes on what a job's user wants to know, once this node's log has it:
// all that waits at once, and no more than the leader keeps.
type noticeSender struct {
	d     *Daemon
	id    string
	epoch uint64

	mu      sync.Mutex
	waiting []Notice
	busy    bool
}

// noticeTime bounds the wait for a leader.
const noticeTime = 30 * time.Second

// send implements node.Options.Notice.
func (n *noticeSender) send(text string) {
	n.d.say("job %s: %s", n.id, text)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting = newest(append(n.waiting, Notice{time.Now().UnixMilli(), text}))
	if !n.busy {
		n.busy = true
		n.d.spawn(n.flush)
	}
}

func (n *noticeSender) flush() {
	for {
		n.mu.Lock()
		list := n.waiting
		n.waiting = nil
		n.busy = len(list) > 0
		n.mu.Unlock()
		if len(list) == 0 {
			return
		}
		b, err := json.Marshal(list)
		if err != nil {
			return // it has no such values
		}
		ctx, cancel := context.WithTimeout(n.d.ctx, noticeTime)
		_ = n.d.toLeader(ctx, http.MethodPost, fmt.Sprintf("/internal/jobs/%s/notices?epoch=%d", n.id, n.epoch), b, nil) // the log has them
		cancel()
	}
}

// lease holds devices for a job, without waiting: the leader waits. Those that the
// leader chose are taken if they can be had, else others unless it said only those.
func (d *Daemon) lease(owner string, chosen []string, only bool) node.Lease {
	return func(m device.Machine, r device.Request, _ bool) ([]device.Device, *device.Held, error) {
		l, err := device.OpenLeases(d.locks())
		if err != nil {
			return nil, nil, err
		}
		var ds []device.Device
		for _, id := range chosen {
			i := slices.IndexFunc(m.Devices, func(v device.Device) bool { return v.ID == id && v.Kind == r.Kind && v.Sick == "" })
			if i >= 0 {
				ds = append(ds, m.Devices[i])
			}
		}
		if len(ds) > 0 && (len(ds) == r.Count || r.Count == 0) {
			h, err := l.Lease(ds, owner, 0)
			if err == nil || only {
				return ds, h, err
			}
		}
		if only {
			return nil, nil, fmt.Errorf("%w: %s", device.ErrUnmet, strings.Join(chosen, " "))
		}
		return l.Acquire(m, r, owner, 0)
	}
}

func (d *Daemon) locks() string {
	if d.cfg.Locks != "" {
		return d.cfg.Locks
	}
	return device.LockDir()
}

// fits tells whether this node could begin a job now.
func (d *Daemon) fits(a assignment) fit {
	h := d.hands
	h.mu.Lock()
	draining := h.draining
	h.mu.Unlock()
	if draining {
		return fit{Why: errDraining.Error()}
	}
	if a.Job == nil {
		return fit{Why: "an assignment without a job"}
	}
	spec := a.Job.Spec
	spec.HardwareConstraint = cmp.Or(a.Constraint, spec.HardwareConstraint)
	_, ds, held, err := node.Devices(spec, node.Options{Spec: spec, AllowSteps: d.cfg.AllowSteps, Lease: d.lease("a look", a.Devices, false), Sources: d.cfg.Sources, Worker: d.cfg.Worker}, "")
	if err != nil {
		return fit{Why: err.Error()}
	}
	held.Release()
	return fit{OK: len(ds) > 0}
}

// uploads puts a job's files where its stages read them, each in a folder of its own
// under the name that its user gave it, which the model's card repeats. Data that
// steps make stands in the spec already.
func (m *mirror) uploads(ctx context.Context, ups []Upload, spec *job.Spec) error {
	spec.Data.Files, spec.Data.Valid, spec.Steps = slices.Clone(spec.Data.Files), slices.Clone(spec.Data.Valid), slices.Clone(spec.Steps)
	for i, u := range ups {
		if err := m.d.fetch(ctx, u.Ref); err != nil {
			return fmt.Errorf("%s: %w", u.Name, err)
		}
		path := filepath.Join(m.d.cfg.Dir, "uploads", m.id, strconv.Itoa(i), filepath.Base(u.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := m.d.files.Lay(u.Ref, path); err != nil {
			return err
		}
		step := slices.IndexFunc(spec.Steps, func(t job.Step) bool { return t.Name == u.Step })
		switch {
		case step >= 0:
			t := &spec.Steps[step]
			t.Files = append(slices.Clone(t.Files), path)
		case u.Warm:
			spec.WarmStart = append(spec.WarmStart, path)
		case u.Valid:
			spec.Data.Valid = append(spec.Data.Valid, path)
		default:
			spec.Data.Files = append(spec.Data.Files, path)
		}
	}
	return nil
}
