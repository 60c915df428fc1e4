package daemon

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/placement"
)

// A job runs on the node of its Supervisor, and on devices that other nodes lend it.
// Those that it asked for and that no single node had are part of it. Apart from that
// a job which takes as many devices as there are is lent whatever idles, until
// something else could have it.

// spreads tells whether a job's ranks may be of several nodes: they meet by a backend
// that reaches other hosts.
func spreads(j *Job) bool {
	return slices.Contains([]string{"", ring.Auto, ring.TCP, ring.NCCL, ring.Gloo}, j.Spec.Backend)
}

// kindOf is the kind of device that a running job computes on, by theirs.
func kindOf(devices []string) device.Kind {
	if len(devices) > 0 && strings.HasPrefix(devices[0], string(device.GPU)+":") {
		return device.GPU
	}
	return device.CPU
}

// constraint asks for so many devices of those that a job asks for.
func constraint(j *Job, kind device.Kind, n int) string {
	need, err := device.ParseRequest(j.Spec.HardwareConstraint)
	if err != nil || need.Kind == device.Auto {
		need = device.Request{Kind: kind}
	}
	need.Count = n
	return need.String()
}

// loan names what a node lends a job among placement's items.
func loan(job, node string) string { return job + " on " + node }

// isOf tells whether an item is a job or one of its loans.
func isOf(item, job string) bool {
	of, _, ok := loanOf(item)
	return item == job || ok && of == job
}

func loanOf(item string) (job, node string, ok bool) { return strings.Cut(item, " on ") }

// wants is how many more devices a running job takes: any number is -1.
func wants(j *Job) int {
	need, err := device.ParseRequest(j.Spec.HardwareConstraint)
	if err != nil || j.State != Running || j.Stopping != "" || j.Cancel || !spreads(j) {
		return 0
	}
	if need.Count == 0 {
		return -1
	}
	return max(0, need.Count-has(j))
}

// has counts a job's devices.
func has(j *Job) int {
	n := len(j.Devices)
	for _, l := range j.Lent {
		n += len(l.Devices)
	}
	return n
}

// startsWithin is how long what was called back is kept for the job that it was called
// back for: a node may refuse it at first, while its devices are let go.
const startsWithin = 3 * time.Second

// spread lends what idles to the jobs that can use it, to the one with the fewest
// devices first. While something makes way for a job that waits it lends nothing: the
// job may need several devices, which do not come back at once.
func (c *chief) spread(ctx context.Context) {
	jobs := slices.DeleteFunc(c.jobs(), func(j Job) bool { return wants(&j) == 0 })
	if len(jobs) == 0 {
		return
	}
	now := time.Now()
	v := c.view(ctx, now)
	c.mu.Lock()
	lately := now.Sub(c.recalled) < startsWithin
	c.mu.Unlock()
	if len(v.Waiting) > 0 && (lately || slices.ContainsFunc(v.Running, func(r placement.Running) bool { return r.Stopping })) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	running := taken(v.Running)
	for _, n := range v.Nodes {
		m, ok := c.d.members.Member(n.ID)
		if !ok || n.Draining {
			continue
		}
		for _, kind := range []device.Kind{device.GPU, device.CPU} {
			var idle []device.Device
			for _, d := range n.Machine.Devices {
				if d.Kind == kind && d.Sick == "" && d.MIG != "on" && n.Held[d.ID] == "" && !running[n.ID+"/"+d.ID] {
					idle = append(idle, d)
				}
			}
			if lend := c.spreadOn(ctx, m, idle, kind, jobs, now); lend != nil {
				wg.Go(lend)
			}
		}
	}
}

// spreadOn finds a job for a node's idle devices of one kind, and says how to lend them;
// nil where no job can use them.
func (c *chief) spreadOn(ctx context.Context, m cluster.Member, idle []device.Device, kind device.Kind, jobs []Job, now time.Time) (lend func()) {
	var best *Job
	var ids []string
	for i := range jobs {
		j := &jobs[i]
		if kindOf(j.Devices) != kind || j.Node == m.ID || j.lent(m.ID) != nil || best != nil && has(j) >= has(best) || c.refusedLately(loan(j.ID, m.ID), now) {
			continue
		}
		if fit := fitting(j, idle); len(fit) > 0 {
			best, ids = j, fit
		}
	}
	if best == nil {
		return nil
	}
	home, ok := c.d.members.Member(best.Node)
	if !ok {
		return nil
	}
	job, asked := *best, wants(best) > 0
	best.Lent = append(slices.Clone(best.Lent), Lent{Node: m.ID, Devices: ids})
	a := assignment{ID: job.ID, Epoch: job.Epoch, Devices: ids, Constraint: constraint(&job, kind, len(ids)), Job: &job}
	return func() { c.lend(ctx, a, m, home, asked) }
}

// fitting are those of a node's idle devices that a job takes.
func fitting(j *Job, idle []device.Device) (ids []string) {
	need, err := device.ParseRequest(j.Spec.HardwareConstraint)
	if err != nil {
		return nil
	}
	left := wants(j)
	for _, d := range idle {
		if left != 0 && (need.Model == "" || strings.Contains(strings.ToLower(d.Model), need.Model)) {
			ids = append(ids, d.ID)
			left--
		}
	}
	return ids
}

func (c *chief) refusedLately(what string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.places.refusals[what], func(r placement.Refusal) bool { return r.Until.After(now) })
}

// lend has a node lend devices to a job that runs. One that refuses is left alone for a
// while.
func (c *chief) lend(ctx context.Context, a assignment, m, home cluster.Member, asked bool) {
	c.mu.Lock()
	j := c.reg.jobs[a.ID]
	if j == nil || j.State != Running || j.Epoch != a.Epoch || j.lent(m.ID) != nil {
		c.mu.Unlock()
		return
	}
	err := c.commit(record{Op: opLend, ID: a.ID, Epoch: a.Epoch, Lent: &Lent{Node: m.ID, NodeName: m.Name, Devices: a.Devices, Asked: asked}})
	c.mu.Unlock()
	if err != nil {
		return
	}
	a.Home, a.Asked = life(home), asked
	if err := c.d.ask(ctx, m.Addr, "/internal/run", a, nil); err != nil {
		_ = c.left(a.ID, leftReport{a.Epoch, m.ID, err.Error()}) // if it has begun all the same, check ends it
	}
}

// recall has a node take back what it lends.
func (c *chief) recall(ctx context.Context, id, node, why string) {
	c.mu.Lock()
	j := c.reg.jobs[id]
	if j == nil || j.lent(node) == nil || j.lent(node).Stopping != "" {
		c.mu.Unlock()
		return
	}
	a, name := assignment{ID: id, Epoch: j.Epoch, Why: why, Home: j.Node}, j.lent(node).NodeName
	c.recalled = time.Now()
	err := c.commit(record{Op: opRecall, ID: id, Epoch: j.Epoch, Node: node, Why: why})
	c.mu.Unlock()
	if err != nil {
		return
	}
	c.d.say("job %s: gives back the devices of node %s: %s", id, name, why)
	if m, ok := c.d.members.Member(node); ok {
		_ = c.d.ask(ctx, m.Addr, "/internal/stop", a, nil) // the next look asks again
	}
}

// left takes a node's word, or what the leader sees, that devices are no longer lent.
func (c *chief) left(id string, r leftReport) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.reg.jobs[id]
	if j == nil || j.Epoch != r.Epoch {
		return nil // it was heard already, or does not count
	}
	l := j.lent(r.Node)
	if l == nil {
		return nil
	}
	if l.Stopping == "" {
		c.places.refuse(loan(id, r.Node), r.Node, r.Why, time.Now())
	}
	c.places.back(r.Node, l.Devices, c.d.members.News()[r.Node], time.Now())
	return c.commit(record{Op: opLeft, ID: id, Epoch: r.Epoch, Node: r.Node, Why: r.Why})
}
