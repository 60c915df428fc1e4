package daemon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// JobState is where a job is in its life.
type JobState string

// The states of a job.
const (
	Queued    JobState = "queued"
	Running   JobState = "running"
	Done      JobState = "done"
	Failed    JobState = "failed"
	Cancelled JobState = "cancelled"
)

// Over tells whether nothing follows.
func (s JobState) Over() bool { return s == Done || s == Failed || s == Cancelled }

// Upload is a file that a job learns from.
type Upload struct {
	Name  string    `json:"name"` // as its user calls it; the ending says its format
	Ref   files.Ref `json:"ref"`
	Valid bool      `json:"valid,omitempty"` // part of the user's own validation part
	Step  string    `json:"step,omitempty"`  // a file of this step, not of the data
	Warm  bool      `json:"warm,omitempty"`  // trials that the search starts warm from, not data
}

// Job is a job as the cluster knows it.
type Job struct {
	ID        string               `json:"id"`
	Name      string               `json:"name,omitempty"`
	State     JobState             `json:"state"`
	By        string               `json:"by,omitempty"`      // who submitted it, as their certificate names them
	Node      string               `json:"node,omitempty"`    // id of the node that carries it out, or did last
	Devices   []string             `json:"devices,omitempty"` // of that node, as it was given them
	Given     time.Time            `json:"given,omitzero"`    // to that node
	NodeName  string               `json:"node_name,omitempty"`
	Epoch     uint64               `json:"epoch"` // counts the times that it was given to a node
	Submitted time.Time            `json:"submitted"`
	Started   time.Time            `json:"started,omitzero"` // first
	Ended     time.Time            `json:"ended,omitzero"`
	Why       string               `json:"why,omitempty"` // it failed, waits, or was given back
	Cancel    bool                 `json:"cancel,omitempty"`
	Stopping  string               `json:"stopping,omitempty"`  // it is stopped for another job: why
	Preempted map[string]time.Time `json:"preempted,omitempty"` // when it was so last, by the owner of the other

	Lent   []Lent `json:"lent,omitempty"`  // devices of other nodes that it has
	Memory Memory `json:"memory,omitzero"` // the most that it was seen to hold, as of when a node last let go of it

	Spec  job.Spec `json:"spec"`
	Files []Upload `json:"files,omitempty"`
}

// Lent is devices that another node lends a job.
type Lent struct {
	Node     string    `json:"node"`
	NodeName string    `json:"node_name"`
	Devices  []string  `json:"devices"`
	Since    time.Time `json:"since"`
	Asked    bool      `json:"asked,omitempty"`    // the job's constraint asks for them
	Stopping string    `json:"stopping,omitempty"` // they are to come back: why
}

// lent is what a node lends the job.
func (j *Job) lent(node string) *Lent {
	if i := slices.IndexFunc(j.Lent, func(l Lent) bool { return l.Node == node }); i >= 0 {
		return &j.Lent[i]
	}
	return nil
}

// op of a record of the stream of jobs.
type op string

const (
	opSubmit  op = "submit"  // Job
	opAssign  op = "assign"  // ID, Node, NodeName, Devices, Epoch
	opLend    op = "lend"    // ID, Epoch, Lent: another node's devices are for it too
	opRecall  op = "recall"  // ID, Epoch, Node, Why: they are to come back
	opLeft    op = "left"    // ID, Epoch, Node: they are back, or lost
	opPreempt op = "preempt" // ID, Epoch, Owner, Why: it makes way for a job of the owner's
	opReturn  op = "return"  // ID, Epoch, Why, Most: its node gave it back, or is gone
	opCancel  op = "cancel"  // ID
	opEnd     op = "end"     // ID, Epoch, State, Why, Most
	opRemove  op = "remove"  // ID
)

// record is one line of that stream.
type record struct {
	Op       op        `json:"op"`
	At       time.Time `json:"at"`
	ID       string    `json:"id,omitempty"`
	Job      *Job      `json:"job,omitempty"`
	Node     string    `json:"node,omitempty"`
	NodeName string    `json:"node_name,omitempty"`
	Devices  []string  `json:"devices,omitempty"`
	Lent     *Lent     `json:"lent,omitempty"`
	Owner    string    `json:"owner,omitempty"`
	Epoch    uint64    `json:"epoch,omitempty"`
	State    JobState  `json:"state,omitempty"`
	Why      string    `json:"why,omitempty"`
	Most     Memory    `json:"most,omitzero"`
}

// registry is all jobs, as the stream's records add up.
type registry struct {
	jobs map[string]*Job
	next int // number of the next job
}

func newRegistry() *registry { return &registry{jobs: map[string]*Job{}, next: 1} }

// apply adds one record. A record that no longer fits, because another came before
// it, changes nothing.
func (r *registry) apply(rec record) {
	if rec.Op == opSubmit {
		if rec.Job == nil || r.jobs[rec.Job.ID] != nil {
			return
		}
		j := *rec.Job
		j.State, j.Submitted = Queued, rec.At
		r.jobs[j.ID] = &j
		var n int
		if _, err := fmt.Sscanf(j.ID, "j%d", &n); err == nil {
			r.next = max(r.next, n+1)
		}
		return
	}
	j := r.jobs[rec.ID]
	if j == nil {
		return
	}
	switch rec.Op {
	case opAssign:
		if j.State == Queued && rec.Epoch > j.Epoch {
			j.State, j.Node, j.NodeName, j.Epoch, j.Why = Running, rec.Node, rec.NodeName, rec.Epoch, ""
			j.Devices, j.Given, j.Stopping, j.Lent = rec.Devices, rec.At, "", nil
			if j.Started.IsZero() {
				j.Started = rec.At
			}
		}
	case opLend:
		if j.State == Running && rec.Epoch == j.Epoch && rec.Lent != nil && j.lent(rec.Lent.Node) == nil {
			l := *rec.Lent
			l.Since = rec.At
			j.Lent = append(slices.Clone(j.Lent), l) // copies of the job are about
		}
	case opRecall:
		if j.State == Running && rec.Epoch == j.Epoch && j.lent(rec.Node) != nil {
			j.Lent = slices.Clone(j.Lent)
			j.lent(rec.Node).Stopping = rec.Why
		}
	case opLeft:
		if rec.Epoch == j.Epoch {
			j.Lent = slices.DeleteFunc(slices.Clone(j.Lent), func(l Lent) bool { return l.Node == rec.Node })
		}
	case opPreempt:
		if j.State == Running && rec.Epoch == j.Epoch {
			j.Stopping = rec.Why
			j.Preempted = maps.Clone(j.Preempted) // copies of the job are about
			if j.Preempted == nil {
				j.Preempted = map[string]time.Time{}
			}
			j.Preempted[rec.Owner] = rec.At
		}
	case opReturn:
		if j.State == Running && rec.Epoch == j.Epoch {
			j.State, j.Why, j.Stopping, j.Lent = Queued, rec.Why, "", nil
			j.Memory = j.Memory.most(rec.Most)
			if j.Cancel {
				j.State, j.Ended = Cancelled, rec.At
			}
		}
	case opCancel:
		if !j.State.Over() {
			j.Cancel = true
			if j.State == Queued {
				j.State, j.Ended = Cancelled, rec.At
			}
		}
	case opEnd:
		if j.State == Running && rec.Epoch == j.Epoch {
			j.State, j.Ended, j.Why, j.Lent = rec.State, rec.At, rec.Why, nil
			j.Memory = j.Memory.most(rec.Most)
		}
	case opRemove:
		if j.State.Over() {
			delete(r.jobs, rec.ID)
		}
	}
}

// newID names the next job.
func (r *registry) newID() string { return fmt.Sprintf("j%d", r.next) }

// list is all jobs, the oldest first.
func (r *registry) list() []Job {
	out := make([]Job, 0, len(r.jobs))
	for j := range maps.Values(r.jobs) {
		out = append(out, *j)
	}
	slices.SortFunc(out, func(a, b Job) int {
		return cmp.Or(a.Submitted.Compare(b.Submitted), cmp.Compare(len(a.ID), len(b.ID)), strings.Compare(a.ID, b.ID))
	})
	return out
}

func (rec record) encode() ([]byte, error) { return json.Marshal(rec) }

func decodeRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("a record of the stream of jobs: %w", err)
	}
	return r, nil
}
