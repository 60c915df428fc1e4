package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/placement"
)

// places is what the leader knows of devices, beside the jobs. The chief's lock guards
// it; cards are the loop's own.
type places struct {
	cards    map[string]card                // by node
	holds    map[string][]string            // devices by job, as its node says
	keeps    map[string][]placement.Share   // devices that wait for a queued job
	near     map[string][]string            // nodes that hold the files of a job that has run nowhere, once they were asked
	memory   map[string]Memory              // by job, or loan: as nodes measured it
	refusals map[string][]placement.Refusal // by job, or loan
	tries    map[string]int                 // refusals so far, for the backoff
	left     map[string]left                // by node
}

// card is a node's, under the sum that it was read at.
type card struct {
	boot    uint64
	sum     uint32
	machine device.Machine
}

// left is the devices that jobs left since a node's last news: those still say that
// they are held.
type left struct {
	devices []string
	news    string
	at      time.Time
}

func newPlaces() places {
	return places{cards: map[string]card{}, holds: map[string][]string{}, keeps: map[string][]placement.Share{}, near: map[string][]string{}, memory: map[string]Memory{}, refusals: map[string][]placement.Refusal{}, tries: map[string]int{}, left: map[string]left{}}
}

// A refusal holds for a second at first, each next one of a job's twice as long.
const (
	refusedFor    = time.Second
	refusedAtMost = 30 * time.Second
	newsOnTheWay  = 500 * time.Millisecond // news that come may be of before a job's end
	newsLate      = 3 * time.Second
)

// refuse notes that a node does not take a job, or gave it back.
func (p *places) refuse(job, node, why string, now time.Time) {
	wait := min(refusedFor<<min(p.tries[job], 10), refusedAtMost)
	p.tries[job]++
	rs := slices.DeleteFunc(p.refusals[job], func(r placement.Refusal) bool { return r.Node == node || !r.Until.After(now) })
	p.refusals[job] = append(rs, placement.Refusal{Node: node, Until: now.Add(wait), Why: why})
}

// freed notes that a job's node let its devices go.
func (p *places) freed(j *Job, news []byte, now time.Time) {
	p.back(j.Node, p.devicesOf(j), news, now)
	delete(p.holds, j.ID)
}

// back notes that a node's devices are free.
func (p *places) back(node string, devices []string, news []byte, now time.Time) {
	l := p.left[node]
	if l.news != string(news) {
		l = left{news: string(news)}
	}
	l.at = now
	l.devices = append(l.devices, devices...)
	p.left[node] = l
}

// forget drops what is known of a job that is over.
func (p *places) forget(job string) {
	delete(p.holds, job)
	delete(p.keeps, job)
	delete(p.near, job)
	maps.DeleteFunc(p.memory, func(what string, _ Memory) bool { return isOf(what, job) })
	maps.DeleteFunc(p.refusals, func(what string, _ []placement.Refusal) bool { return isOf(what, job) })
	maps.DeleteFunc(p.tries, func(what string, _ int) bool { return isOf(what, job) })
}

// memoryOf is the most that a job was seen to hold on one host and of one GPU, on nodes
// that lend it devices which make way too.
func (p *places) memoryOf(j *Job) Memory {
	m := j.Memory.most(p.memory[j.ID])
	for _, l := range j.Lent {
		m = m.most(p.memory[loan(j.ID, l.Node)])
	}
	return m
}

// devicesOf are those that a running job has, or was given.
func (p *places) devicesOf(j *Job) []string {
	if ds := p.holds[j.ID]; len(ds) > 0 {
		return ds
	}
	return j.Devices
}

// readCards reads the cards that are new or have changed, of all nodes at once. One
// that does not answer keeps its old one.
func (c *chief) readCards(ctx context.Context, all []cluster.Member, heard map[string]news) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range all {
		n, ok := heard[m.ID]
		if old := c.places.cards[m.ID]; !ok || old.boot == m.Boot && old.sum == n.Card {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			b, err := c.d.members.Card(ctx, m.ID)
			k := card{boot: m.Boot, sum: n.Card}
			if err != nil || json.Unmarshal(b, &k.machine) != nil {
				return // the next look reads it again
			}
			mu.Lock()
			defer mu.Unlock()
			c.places.cards[m.ID] = k
		})
	}
	wg.Wait()
}

// view is the cluster as placement sees it.
func (c *chief) view(ctx context.Context, now time.Time) placement.View {
	all := c.d.members.Members()
	raw := c.d.members.News()
	heard := map[string]news{}
	for id, b := range raw {
		if n, err := decodeNews(b); err == nil {
			heard[id] = n
		}
	}
	c.readCards(ctx, all, heard)
	c.mu.Lock()
	defer c.mu.Unlock()
	v := placement.View{Usage: map[string]float64{}}
	window := placement.DefaultConfig().Window
	for _, j := range c.reg.list() {
		switch j.State {
		case Queued:
			v.Waiting = append(v.Waiting, c.item(&j))
		case Running:
			v.Running = append(v.Running, c.runs(&j)...)
		}
		if !j.Given.IsZero() && j.State != Queued {
			end := j.Ended
			if end.IsZero() {
				end = now
			}
			if took := end.Sub(later(j.Given, now.Add(-window))); took > 0 {
				v.Usage[j.By] += float64(len(j.Devices)) * took.Seconds() / window.Seconds()
			}
		}
	}
	held := taken(v.Running)
	for _, m := range all {
		k, ok := c.places.cards[m.ID]
		if !ok || k.boot != m.Boot {
			continue // it is looked at again
		}
		n := heard[m.ID]
		node := placement.Node{ID: m.ID, Name: m.Name, Machine: k.machine, FreeBytes: n.Memory, Load: n.Load, Labels: labels(m.Labels, n), Draining: n.Draining, Held: map[string]string{}}
		free := c.places.left[m.ID]
		if age := now.Sub(free.at); age > newsLate || age > newsOnTheWay && free.news != string(raw[m.ID]) {
			delete(c.places.left, m.ID)
			free = left{}
		}
		for i, d := range k.machine.Devices {
			if i/8 < len(n.Held) && n.Held[i/8]>>(i%8)&1 == 1 && !held[m.ID+"/"+d.ID] && !slices.Contains(free.devices, d.ID) {
				node.Held[d.ID] = "somebody else"
			}
		}
		v.Nodes = append(v.Nodes, node)
	}
	maps.DeleteFunc(c.places.cards, func(id string, _ card) bool {
		return !slices.ContainsFunc(all, func(m cluster.Member) bool { return m.ID == id })
	})
	return v
}

// taken are the devices of what runs, as node/device.
func taken(running []placement.Running) map[string]bool {
	out := map[string]bool{}
	for _, r := range running {
		for _, sh := range r.On {
			for _, d := range sh.Devices {
				out[sh.Node+"/"+d] = true
			}
		}
	}
	return out
}

// runs is a running job as placement sees it: what it asked for, and apart from that
// each loan, which makes way for whatever else could have the devices.
func (c *chief) runs(j *Job) []placement.Running {
	own := placement.Running{
		Item: c.item(j), On: []placement.Share{{Node: j.Node, Devices: c.places.devicesOf(j)}},
		Since: j.Given, Stopping: j.Stopping != "" || j.Cancel,
	}
	out := []placement.Running{own}
	for _, l := range j.Lent {
		sh := placement.Share{Node: l.Node, Devices: l.Devices}
		if l.Asked {
			out[0].On = append(out[0].On, sh)
			continue
		}
		i := placement.Item{
			ID: loan(j.ID, l.Node), Owner: j.By, Priority: math.MinInt32, Need: device.Request{Kind: kindOf(j.Devices), Count: len(l.Devices)},
			Submitted: l.Since, Preemptible: true, Memory: bytesOf(c.places.memory[loan(j.ID, l.Node)], kindOf(j.Devices)),
		}
		out = append(out, placement.Running{Item: i, On: []placement.Share{sh}, Since: l.Since, Stopping: own.Stopping || l.Stopping != ""})
	}
	return out
}

// allowSteps is the label of nodes that run steps of jobs, named as the flag that
// makes them.
const allowSteps = "allow-steps"

// labels are a node's own, and what it says of itself.
func labels(own map[string]string, n news) map[string]string {
	out := maps.Clone(own)
	delete(out, allowSteps) // only the flag counts
	if n.Steps {
		if out == nil {
			out = map[string]string{}
		}
		out[allowSteps] = "true"
	}
	return out
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// bytesOf is what placement goes by for work on devices of a kind.
func bytesOf(m Memory, kind device.Kind) int64 {
	if kind == device.GPU {
		return m.GPU
	}
	return m.Host
}

// item is a job as placement sees it. Any job may make way: it goes on from its
// journal. How much memory one needs nobody has measured before it runs.
func (c *chief) item(j *Job) placement.Item {
	need, err := device.ParseRequest(j.Spec.HardwareConstraint)
	if err != nil {
		need = device.Request{Kind: device.Auto} // it was checked when it came
	}
	i := placement.Item{
		ID: j.ID, Owner: j.By, Priority: j.Spec.Priority, Need: need, Submitted: j.Submitted,
		Preemptible: true, Refused: c.places.refusals[j.ID], Preempted: j.Preempted, Spread: spreads(j), Keeps: c.places.keeps[j.ID],
		Memory: bytesOf(c.places.memoryOf(j), need.Kind),
	}
	if need.Kind == device.Auto && c.d.cfg.Worker != nil && j.Spec.Engine != "native" && j.Spec.Isolation != "none" {
		i.Either = j.Spec.Placement.Policy()
	}
	if len(j.Spec.Steps) > 0 {
		i.Labels = map[string]string{allowSteps: "true"}
	}
	i.Near = c.places.near[j.ID]
	if j.Node != "" {
		i.Near = []string{j.Node} // its folder is there
	}
	return i
}

// assign gives queued jobs to nodes, and stops those that make way.
func (c *chief) assign(ctx context.Context) {
	for again := true; again && ctx.Err() == nil; {
		if !slices.ContainsFunc(c.jobs(), func(j Job) bool { return j.State == Queued }) {
			return
		}
		c.locate(ctx)
		now := time.Now()
		why := map[string]string{}
		var refused atomic.Bool
		var wg sync.WaitGroup // a node that hangs holds up its own jobs alone
		for _, a := range placement.Decide(c.view(ctx, now), now, placement.DefaultConfig()) {
			switch a.Do {
			case placement.Start:
				wg.Go(func() {
					if !c.give(ctx, a.Item, a.On) {
						refused.Store(true)
					}
				})
			case placement.Preempt:
				wg.Go(func() { c.preempt(ctx, a) })
			case placement.Keep:
				c.keep(a.Item, a.On)
			case placement.Wait:
				why[a.Item] = a.Why
			}
		}
		wg.Wait()
		again = refused.Load()
		c.mu.Lock()
		c.refusals = why
		c.mu.Unlock()
	}
}

// locate asks all nodes, once for each job that has run nowhere, whether they hold its
// files. One that does not answer in time holds none.
func (c *chief) locate(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, j := range c.jobs() {
		c.mu.Lock()
		_, known := c.places.near[j.ID]
		if j.State == Queued && !known {
			c.places.near[j.ID] = nil
		}
		c.mu.Unlock()
		if known || j.State != Queued || j.Node != "" || len(j.Files) == 0 {
			continue
		}
		for _, m := range c.d.members.Members() {
			wg.Go(func() {
				if !c.d.holds(ctx, m.Addr, j.Files) {
					return
				}
				c.mu.Lock()
				defer c.mu.Unlock()
				c.places.near[j.ID] = append(c.places.near[j.ID], m.ID)
			})
		}
	}
	wg.Wait()
}

// holds tells whether a node has all of a job's files.
func (d *Daemon) holds(ctx context.Context, addr string, ups []Upload) bool {
	for _, u := range ups {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://"+addr+"/internal/files/"+u.Ref.Hash, nil)
		if err != nil {
			return false
		}
		r, err := d.client.Do(req)
		if err != nil {
			return false
		}
		r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return false
		}
	}
	return true
}

// keep notes which devices wait for a job.
func (c *chief) keep(id string, on []placement.Share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(on) == 0 {
		delete(c.places.keeps, id)
	} else {
		c.places.keeps[id] = on
	}
}

// give hands a job to the node of its first share, and has the others lend it theirs;
// false when one refuses.
func (c *chief) give(ctx context.Context, id string, on []placement.Share) bool {
	c.mu.Lock()
	j := c.reg.jobs[id]
	if j == nil || j.State != Queued {
		c.mu.Unlock()
		return true // the next look sees why
	}
	job := *j
	c.mu.Unlock()
	parts := make([]assignment, len(on))
	at := make([]cluster.Member, len(on))
	for i, sh := range on {
		m, ok := c.d.members.Member(sh.Node)
		if !ok {
			return true
		}
		a := assignment{ID: id, Epoch: job.Epoch + 1, Devices: sh.Devices, Job: &job}
		if len(on) > 1 {
			a.Constraint = constraint(&job, device.CPU, len(sh.Devices))
		}
		var f fit
		if err := c.d.ask(ctx, m.Addr, "/internal/fit", a, &f); err != nil {
			f.Why = err.Error()
		}
		if !f.OK {
			c.refuse(id, m.ID, f.Why)
			return false
		}
		parts[i], at[i] = a, m
	}
	home, a := at[0], parts[0]
	c.mu.Lock()
	err := errTaken
	if j := c.reg.jobs[id]; j != nil && j.State == Queued && j.Epoch == job.Epoch {
		err = c.commit(record{Op: opAssign, ID: id, Node: home.ID, NodeName: home.Name, Devices: a.Devices, Epoch: a.Epoch})
		delete(c.places.keeps, id)
	}
	c.mu.Unlock()
	if err != nil {
		return true
	}
	if err := c.d.ask(ctx, home.Addr, "/internal/run", a, nil); err != nil {
		c.refuse(id, home.ID, err.Error())
		job.Epoch = a.Epoch
		c.takeBack(job, fmt.Sprintf("node %s: %v", home.Name, err))
		return false
	}
	for i := range parts[1:] {
		c.lend(ctx, parts[i+1], at[i+1], home, true) // where it fails, spread finds others
	}
	return true
}

// refuse notes that a node does not take a job, or a loan.
func (c *chief) refuse(what, node, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.places.refuse(what, node, why, time.Now())
}

// preempt has a job make way; its node gives it back.
func (c *chief) preempt(ctx context.Context, a placement.Action) {
	if id, node, ok := loanOf(a.Item); ok {
		c.recall(ctx, id, node, "job "+a.For+" needs them")
		return
	}
	c.mu.Lock()
	j, by := c.reg.jobs[a.Item], c.reg.jobs[a.For]
	if j == nil || by == nil || j.State != Running || c.commit(record{Op: opPreempt, ID: j.ID, Epoch: j.Epoch, Owner: by.By, Why: "it makes way: " + a.Why}) != nil {
		c.mu.Unlock()
		return
	}
	job := *j
	c.mu.Unlock()
	c.d.say("job %s: %s", job.ID, job.Stopping)
	if m, ok := c.d.members.Member(job.Node); ok {
		_ = c.d.ask(ctx, m.Addr, "/internal/stop", assignment{ID: job.ID, Epoch: job.Epoch, Why: job.Stopping}, nil) // the next look asks again
	}
}
