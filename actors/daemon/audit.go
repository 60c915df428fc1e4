package daemon

import (
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/open-autoglm/autoglm/cluster/replica"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Audit reads a backup of all journals and says where they break what the cluster
// promises:
//
//   - a job is one node's at a time, under epochs that only grow;
//   - a device is given to one job at a time;
//   - each record of a job's journal was written by the node that had the job, in
//     order, and is there once;
//   - a trial's piece of training ends once, and none that was decided is missing from
//     a job that is done;
//   - a user's order stands before the decisions that were made under it, and a trial
//     that was stopped is decided on no more;
//   - ranks that trained together ended with the same bits;
//   - nothing follows the end of a job.
//
// An empty list is the proof for what the backup holds.
func Audit(backup io.Reader) ([]string, error) {
	a := &audit{jobs: map[string]*audited{}, owners: map[owned]string{}}
	err := replica.ReadBackup(backup, func(stream string, rec []byte) error {
		switch id, ok := strings.CutPrefix(stream, "job/"); {
		case ok:
			return a.entry(id, rec)
		case stream == streamOfJobs:
			return a.record(rec)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.close()
	return a.found, nil
}

type audit struct {
	jobs   map[string]*audited
	owners map[owned]string // the job that has it
	found  []string
}

// owned is a device of a node.
type owned struct{ node, id string }

type audited struct {
	state   JobState
	epoch   uint64 // of the last assignment
	removed bool

	entries   int
	lastE     uint64
	lastS     uint64
	decisions int
	orders    int
	stopped   map[string]bool // trials, by orders
	outcomes  map[int]int
	final     int
	finished  bool
}

func (a *audit) say(format string, v ...any) { a.found = append(a.found, fmt.Sprintf(format, v...)) }

func (a *audit) job(id string) *audited {
	if a.jobs[id] == nil {
		a.jobs[id] = &audited{outcomes: map[int]int{}, stopped: map[string]bool{}}
	}
	return a.jobs[id]
}

func (a *audit) record(b []byte) error {
	r, err := decodeRecord(b)
	if err != nil {
		return err
	}
	j := a.job(r.ID)
	switch r.Op {
	case opSubmit:
		j.state = Queued
	case opAssign:
		if j.state == Running {
			a.say("job %s: given to %s while another node had it", r.ID, r.NodeName)
		}
		if r.Epoch <= j.epoch {
			a.say("job %s: epoch %d after %d", r.ID, r.Epoch, j.epoch)
		}
		j.state, j.epoch = Running, r.Epoch
		a.give(r.ID, r.Node, r.Devices)
	case opLend:
		if r.Lent != nil && r.Epoch == j.epoch && j.state == Running {
			a.give(r.ID, r.Lent.Node, r.Lent.Devices)
		}
	case opLeft:
		if r.Epoch == j.epoch {
			maps.DeleteFunc(a.owners, func(d owned, owner string) bool { return owner == r.ID && d.node == r.Node })
		}
	case opReturn:
		if r.Epoch == j.epoch {
			j.state = Queued
			a.free(r.ID)
		}
	case opEnd:
		if j.state.Over() {
			a.say("job %s: ended twice", r.ID)
		}
		if r.Epoch != j.epoch {
			a.say("job %s: ended by the node of epoch %d, it was in epoch %d", r.ID, r.Epoch, j.epoch)
		}
		j.state = r.State
		a.free(r.ID)
	case opRemove:
		j.removed = true
	}
	return nil
}

// give notes who has a node's devices now.
func (a *audit) give(job, node string, devices []string) {
	for _, id := range devices {
		d := owned{node, id}
		if other := a.owners[d]; other != "" && other != job {
			a.say("job %s: device %s of node %s was given to it while job %s had it", job, id, node, other)
		}
		a.owners[d] = job
	}
}

// free lets a job's devices go.
func (a *audit) free(job string) {
	maps.DeleteFunc(a.owners, func(_ owned, owner string) bool { return owner == job })
}

func (a *audit) entry(id string, b []byte) error {
	epoch, seq, rec, err := decodeEntry(b)
	if err != nil {
		return err
	}
	j := a.job(id)
	switch {
	case j.entries > 0 && epoch < j.lastE:
		a.say("job %s: a record of epoch %d after one of %d", id, epoch, j.lastE)
	case j.entries > 0 && epoch == j.lastE && seq != j.lastS+1:
		a.say("job %s: record %d of epoch %d follows record %d", id, seq, epoch, j.lastS)
	case (j.entries == 0 || epoch > j.lastE) && seq != 0:
		a.say("job %s: epoch %d begins with record %d", id, epoch, seq)
	}
	j.entries++
	j.lastE, j.lastS = epoch, seq
	e, err := journal.Decode(rec)
	if err != nil {
		return err
	}
	if j.finished {
		a.say("job %s: %s after its end", id, e.Kind)
	}
	switch e.Kind {
	case journal.Decided:
		if e.Decision == nil || e.Decision.Seq != j.decisions {
			a.say("job %s: a decision out of order", id)
		}
		if e.Decision != nil && j.stopped[e.Decision.Trial] {
			a.say("job %s: decision %d is of trial %s, which was stopped before", id, e.Decision.Seq, e.Decision.Trial)
		}
		j.decisions++
	case journal.Ordered:
		switch {
		case e.Order == nil || e.Order.Seq != j.orders:
			a.say("job %s: an order out of order", id)
		case e.Order.Before != j.decisions:
			a.say("job %s: order %d stands before decision %d and says %d", id, e.Order.Seq, j.decisions, e.Order.Before)
		case e.Order.Kind == search.Stop:
			j.stopped[e.Order.Trial] = true
		}
		j.orders++
	case journal.TrialRetried:
		a.alike(id, e)
	case journal.TrialEnded:
		a.alike(id, e)
		if e.Trial != nil {
			j.outcomes[e.Trial.Seq]++
			if n := j.outcomes[e.Trial.Seq]; n > 1 {
				a.say("job %s: decision %d (%s) ended %d times", id, e.Trial.Seq, e.Trial.Trial, n)
			}
		}
	case journal.FinalEnded:
		a.alike(id, e)
		if j.final++; j.final > 1 {
			a.say("job %s: the final training ended %d times", id, j.final)
		}
	case journal.Finished:
		j.finished = true
	}
	return nil
}

// alike looks for ranks that came apart, which end their training.
func (a *audit) alike(id string, e journal.Event) {
	if e.Trial != nil && strings.Contains(e.Trial.Err, train.ErrApart.Error()) {
		a.say("job %s: decision %d (%s): %s", id, e.Trial.Seq, e.Trial.Trial, e.Trial.Err)
	}
}

func (a *audit) close() {
	for id, j := range a.jobs {
		if j.removed {
			continue
		}
		if j.lastE > j.epoch {
			a.say("job %s: records of epoch %d, and it was given out only up to %d", id, j.lastE, j.epoch)
		}
		if j.state != Done {
			continue
		}
		if !j.finished {
			a.say("job %s: done, and its journal has no end", id)
		}
		for seq := range j.decisions {
			if j.outcomes[seq] == 0 {
				a.say("job %s: decision %d was lost", id, seq)
			}
		}
	}
}
