package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// hands is a node's part: the jobs that it carries out.
type hands struct {
	d  *Daemon
	wg sync.WaitGroup

	mu       sync.Mutex
	running  map[string]*held // by job
	draining bool
}

// held is a job in hand.
type held struct {
	assignment
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// Why a job in hand ends before it is done.
var (
	errCancelled = errors.New("cancelled")
	errDraining  = errors.New("the node is drained")
	errStopping  = errors.New("the node stops")
)

func newHands(d *Daemon) *hands { return &hands{d: d, running: map[string]*held{}} }

func (h *hands) list() []assignment {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []assignment{}
	for _, r := range h.running {
		out = append(out, assignment{ID: r.ID, Epoch: r.Epoch, Devices: r.Devices})
	}
	return out
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
	old := h.running[a.ID]
	if old != nil && old.Epoch >= a.Epoch {
		return nil // it was heard already
	}
	ctx, cancel := context.WithCancelCause(h.d.ctx)
	r := &held{assignment: a, cancel: cancel, done: make(chan struct{})}
	h.running[a.ID] = r
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		defer close(r.done)
		if old != nil {
			old.cancel(errTaken)
			<-old.done
		}
		h.run(ctx, r)
	}()
	return nil
}

// holds notes which devices a job has leased, for the leader.
func (h *hands) holds(r *held, ds []device.Device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Devices = nil
	for _, v := range ds {
		r.Devices = append(r.Devices, v.ID)
	}
}

// stop ends a job in hand.
func (h *hands) stop(id string, epoch uint64, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.running[id]; r != nil && r.Epoch == epoch {
		r.cancel(why)
	}
}

// drain gives all jobs back and takes none from now on.
func (h *hands) drain(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	for _, r := range h.running {
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
	// The node may be stopping: the report has its own bound then.
	report, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(h.d.ctx, func() { time.AfterFunc(farewell, cancel) })
	defer stop()
	_ = h.d.toLeader(report, http.MethodPost, fmt.Sprintf("/internal/jobs/%s/end", r.ID), endReport{r.Epoch, state, why}, nil)
	h.forget(r)
}

// forget takes a job out of the list, after its end was heard: until then the
// leader may ask.
func (h *hands) forget(r *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[r.ID] == r {
		delete(h.running, r.ID)
	}
}

type endReport struct {
	Epoch uint64   `json:"epoch"`
	State JobState `json:"state"`
	Why   string   `json:"why,omitempty"`
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
	case errors.Is(err, node.ErrInterrupted), errors.Is(err, device.ErrBusy), actors.DiskError(err), errors.Is(err, errHere):
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
	kept := make(chan struct{})
	every, stop := context.WithCancel(ctx)
	go func() {
		defer close(kept)
		m.run(every)
	}()
	defer func() {
		stop()
		<-kept
	}()
	pr := &progressSender{d: d, id: r.ID, epoch: r.Epoch}
	n, err := node.Open(node.Options{
		Dir: dir, Spec: spec, Journal: &jobLog{d: d, ctx: ctx, id: r.ID, epoch: r.Epoch}, Keep: m.keep, Log: d.cfg.ActorLog,
		AllowFallback: false, AllowSteps: d.cfg.AllowSteps, Lease: d.lease("job "+r.ID, r.Devices), Sources: d.cfg.Sources, Worker: d.cfg.Worker,
		Events: actors.Events{Progress: pr.send},
		Notice: func(text string) { d.say("job %s: %s", r.ID, text) },
		Fallback: func(asked error, has []device.Device) {
			d.say("job %s: %v; going on with %d CPU core(s)", r.ID, asked, len(has))
		},
	})
	if err != nil {
		return err
	}
	h.holds(r, n.Devices())
	d.change()
	defer d.change()
	if err := n.Run(ctx); err != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		return errors.Join(err, m.keep(last))
	}
	return m.keep(ctx)
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

// lease holds devices for a job, without waiting: the leader waits. Those that the
// leader chose are taken if they can be had, else others.
func (d *Daemon) lease(owner string, chosen []string) node.Lease {
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
		if len(ds) > 0 && len(ds) == r.Count {
			if h, err := l.Lease(ds, owner, 0); err == nil {
				return ds, h, nil
			}
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
	_, ds, held, err := node.Devices(a.Job.Spec, node.Options{Spec: a.Job.Spec, AllowSteps: d.cfg.AllowSteps, Lease: d.lease("a look", a.Devices), Sources: d.cfg.Sources, Worker: d.cfg.Worker}, "")
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
		case u.Valid:
			spec.Data.Valid = append(spec.Data.Valid, path)
		default:
			spec.Data.Files = append(spec.Data.Files, path)
		}
	}
	return nil
}
