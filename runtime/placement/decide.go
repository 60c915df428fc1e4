package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// decision is one round.
type decision struct {
	*Scheduler
	now  time.Time
	kept []pool // a gang of this kind and model keeps devices
	out  []Action

	// What was found not to fit at the level that is dealt with, for one owner. What
	// asks for more is not tried.
	failed map[*owner][]*shape

	// Something could have been stopped for the item that is dealt with, had it not
	// been stopped for the same owner of late. Another owner may do better.
	shielded bool
}

type pool struct {
	kind  device.Kind
	model string
}

// Decide starts what can be started and stops what gives way.
func (s *Scheduler) Decide(now time.Time) []Action {
	s.advance(now)
	s.wake(now)
	s.round++
	for _, h := range s.nodes {
		if h.kept > 0 {
			h.kept, h.ver = 0, s.tick()
			for i := range h.devices {
				h.devices[i].mark = mark{}
			}
		}
	}
	d := &decision{Scheduler: s, now: now}
	d.renew()
	for _, l := range slices.Clone(s.levels) { // a level whose last item starts goes
		d.collect(l)
		d.begin(l)
		for {
			g := d.first(l)
			if g == nil {
				break
			}
			d.try(g)
		}
	}
	return d.out
}

// begin opens all groups of a level.
func (d *decision) begin(l *level) {
	d.failed = map[*owner][]*shape{}
	for _, q := range l.queues {
		q.open, q.first = append(q.open[:0], q.groups...), nil
	}
}

// first is the group whose first item's turn it is: that of the owner who has had
// least.
func (d *decision) first(l *level) *group {
	var best *group
	for _, q := range l.queues {
		if len(q.open) == 0 || best != nil && best.queue.owner.weight() <= q.owner.weight() {
			continue // the names are in order
		}
		if g := q.first; g == nil || d.hopeless(g) {
			d.look(q)
		}
		if q.first != nil {
			best = q.first
		}
	}
	return best
}

// look finds the oldest item of a queue, and closes groups that can't be helped.
func (d *decision) look(q *queue) {
	q.first = nil
	left := q.open[:0]
	for _, g := range q.open {
		if g.round != d.round {
			g.round, g.next, g.seen, g.reason = d.round, 0, 0, nil
		}
		if g.next == len(g.entries) {
			continue
		}
		if d.hopeless(g) {
			if g.reason == nil && g.shape.gang {
				g.reason = d.keep(g.entries[g.next])
			}
			continue
		}
		left = append(left, g)
		if q.first == nil || before(&g.entries[g.next].Item, &q.first.entries[q.first.next].Item) < 0 {
			q.first = g
		}
	}
	q.open = left
}

// hopeless tells whether what asks for no more was found not to fit.
func (d *decision) hopeless(g *group) bool {
	if g.shape.round == d.round && g.shape.level == g.level.priority {
		return true
	}
	mine := d.failed[g.queue.owner]
	for ; g.seen < len(mine); g.seen++ {
		if mine[g.seen].easier(g.shape) {
			return true
		}
	}
	return false
}

// fail closes what asks for no less: for one owner, or for all.
func (d *decision) fail(g *group) {
	if d.shielded {
		d.failed[g.queue.owner] = append(d.failed[g.queue.owner], g.shape)
		return
	}
	for _, sh := range d.shapes {
		if g.shape.easier(sh) {
			sh.round, sh.level = d.round, g.level.priority
		}
	}
}

// try deals with the first item of a group that was not dealt with.
func (d *decision) try(g *group) {
	e := g.entries[g.next]
	d.shielded, g.queue.first = false, nil
	if len(e.Keeps) > 0 {
		g.next++
		return
	}
	e.reason = nil
	if on := d.choose(e); on != nil {
		d.start(e, on)
		return
	}
	r := d.takeComing(e)
	if r == nil {
		r = d.preempt(e)
	}
	if r != nil {
		e.reason = r
		g.next++
		return
	}
	g.reason = d.keep(e)
	d.fail(g)
}

func (d *decision) start(e *entry, on []Share) {
	d.unmark(e)
	for _, sh := range on {
		h := d.host(sh.Node)
		for _, v := range sh.Devices {
			d.pass(e, h.devices[h.index[v]].mark)
		}
	}
	d.dequeue(e)
	d.release(e.shape)
	d.run(e, on, d.now)
	d.out = append(d.out, Action{Do: Start, Item: e.ID, On: on})
}

// may tells whether an item could have a device now.
func (d *decision) may(e *entry, h *host, i int) bool {
	m := h.devices[i].mark
	if !e.shape.free(h, i) {
		return false
	}
	if m.by == nil || m.by == e {
		return true
	}
	if m.hard {
		return m.passed(e)
	}
	gives, _ := d.givesWay(e, m.by)
	return gives
}

// passed tells whether an item takes what a pre-emption keeps for another.
func (m mark) passed(e *entry) bool { return m.hard && e.Priority > m.by.Priority }

// givesWay tells whether one item can be stopped for the other, or only was stopped
// for its owner too lately.
func (d *decision) givesWay(e, to *entry) (gives, late bool) {
	if !e.Preemptible || e.Priority >= to.Priority {
		return false, false
	}
	last, ok := e.Preempted[to.Owner]
	late = ok && d.now.Sub(last) < d.cfg.Protect
	return !late, late
}

// free is how many devices of a host an item could have, and how many of those are
// kept for others.
func (d *decision) free(e *entry, h *host) (n, kept int) {
	f := e.shape.at(h, d.now)
	n = f.free
	if h.kept == 0 || !e.shape.roomy(f, h.memory) {
		return n, 0
	}
	for _, i := range f.on {
		if h.devices[i].mark.by != nil && d.may(e, h, i) {
			kept++
		}
	}
	return n + kept, kept
}

// offer is a host that an item fits on, with what counts for and against it.
type offer struct {
	h    *host
	free int
	near bool
	kept bool // devices that are kept for others would be needed
	busy bool
	byte int64
	left int
}

// overload is where a node's processors have more to do than they can: its load, in
// runnable processes per processor, is more than its own work makes.
const overload = 1.25

// offer of a host for n devices at least.
func (d *decision) offer(e *entry, h *host, n int) (offer, bool) {
	free, kept := d.free(e, h)
	if free < n {
		return offer{}, false
	}
	o := offer{h: h, free: free, near: slices.Contains(e.Near, h.ID), kept: free-kept < n, busy: h.Load > overload}
	o.byte = e.shape.at(h, d.now).bytes
	o.left = free - e.Need.Count
	if e.Need.Count == 0 {
		o.left = -free
	}
	return o, true
}

func (o offer) compare(p offer) int {
	return cmp.Or(no(o.near, p.near), -no(o.kept, p.kept), -no(o.busy, p.busy), cmp.Compare(o.byte, p.byte),
		cmp.Compare(o.left, p.left), cmp.Compare(o.h.Load, p.h.Load), strings.Compare(o.h.ID, p.h.ID))
}

// no sorts true first.
func no(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// choose says where an item goes, nil when it can't.
func (d *decision) choose(e *entry) []Share {
	want := e.shape.want()
	var best offer
	var some []offer
	total := 0
	for _, h := range d.nodes {
		if h.kept == 0 && e.shape.at(h, d.now).free == 0 {
			continue
		}
		if o, ok := d.offer(e, h, want); ok && (best.h == nil || o.compare(best) < 0) {
			best = o
		}
		if e.Spread && best.h == nil {
			if o, ok := d.offer(e, h, 1); ok {
				some = append(some, o)
				total += o.free
			}
		}
	}
	if best.h != nil {
		return []Share{d.pick(e, best.h, e.Need.Count)}
	}
	if total < want {
		return nil
	}
	// Over as few nodes as can be.
	slices.SortFunc(some, func(a, b offer) int { return cmp.Or(cmp.Compare(b.free, a.free), a.compare(b)) })
	var on []Share
	for _, o := range some {
		n := min(o.free, want)
		on = append(on, d.pick(e, o.h, n))
		if want -= n; want == 0 {
			break
		}
	}
	return on
}

// pick takes n devices of a host, the best connected; 0 takes all.
func (d *decision) pick(e *entry, h *host, n int) Share {
	f := e.shape.at(h, d.now)
	held := make(map[string]string, len(h.devices))
	for i := range h.Machine.Devices {
		held[h.Machine.Devices[i].ID] = "others"
	}
	all := max(1, n) > f.free // else what is kept for others stays so
	for _, i := range f.on {
		if d.may(e, h, i) && (all || h.devices[i].mark.by == nil) {
			delete(held, h.Machine.Devices[i].ID)
		}
	}
	ds, err := h.Machine.MatchFree(device.Request{Kind: f.kind, Count: n}, held)
	if err != nil {
		panic("placement: devices that were counted are not there: " + err.Error())
	}
	sh := Share{Node: h.ID}
	for _, v := range ds {
		sh.Devices = append(sh.Devices, v.ID)
	}
	return sh
}

// set keeps a device for an item.
func (d *decision) set(e *entry, h *host, i int, hard bool) {
	d.pass(e, h.devices[i].mark)
	if h.devices[i].mark.by == nil {
		h.kept++
	}
	h.devices[i].mark = mark{e, hard}
	h.ver = d.tick()
}

// room is what a host has, or will have once those who stop have ended, that is kept
// for nobody else.
func (d *decision) room(e *entry, h *host) (free, coming []int) {
	f := e.shape.at(h, d.now)
	if !e.shape.roomy(f, h.soon) {
		return nil, nil
	}
	for _, i := range f.on {
		c := &h.devices[i]
		switch {
		case c.mark.by != nil && c.mark.by != e && !c.mark.passed(e):
		case e.shape.free(h, i):
			free = append(free, i)
		case c.by != nil && c.by.stopping:
			coming = append(coming, i)
		}
	}
	return free, coming
}

// takeComing keeps for an item what others are being stopped on, where that is enough.
func (d *decision) takeComing(e *entry) *reason {
	if d.stopping == 0 {
		return nil
	}
	want := e.shape.want()
	for _, h := range d.nodes {
		if h.coming == 0 {
			continue
		}
		free, coming := d.room(e, h)
		if len(coming) > 0 && len(free)+len(coming) >= want {
			d.claim(e, []*host{h})
			return &reason{e: e, round: d.round, coming: true, on: []*host{h}}
		}
	}
	return nil
}

// claim keeps devices of hosts for an item until it starts, the free ones first.
func (d *decision) claim(e *entry, hosts []*host) {
	want := e.shape.want()
	for _, h := range hosts {
		free, coming := d.room(e, h)
		sh := Share{Node: h.ID}
		for _, i := range append(free, coming...)[:min(want, len(free)+len(coming))] {
			d.set(e, h, i, true)
			sh.Devices = append(sh.Devices, h.Machine.Devices[i].ID)
		}
		if want -= len(sh.Devices); len(sh.Devices) > 0 {
			e.Keeps = append(e.Keeps, sh)
		}
	}
	d.keepers[e.ID] = e
	d.out = append(d.out, Action{Do: Keep, Item: e.ID, On: e.Keeps})
}

// renew marks what earlier decisions kept: were it anybody's meanwhile, what becomes free
// bit by bit would go bit by bit, and more would be stopped in its place.
func (d *decision) renew() {
	for _, e := range d.keeping() {
		if d.later[e.ID] != nil || !d.stands(e) {
			d.lose(e)
			continue
		}
		e.reason = &reason{e: e, round: d.round, coming: true}
		for _, sh := range e.Keeps {
			h := d.host(sh.Node)
			e.reason.on = append(e.reason.on, h)
			for _, v := range sh.Devices {
				d.set(e, h, h.index[v], true)
			}
		}
	}
}

// stands tells whether all that an item keeps is free, or will be.
func (d *decision) stands(e *entry) bool {
	n := 0
	for _, sh := range e.Keeps {
		h := d.host(sh.Node)
		if h == nil {
			return false
		}
		f := e.shape.at(h, d.now)
		if !e.shape.roomy(f, h.soon) {
			return false
		}
		for _, v := range sh.Devices {
			i, ok := h.index[v]
			if !ok || !slices.Contains(f.on, i) {
				return false
			}
			c := &h.devices[i]
			if c.mark.by != nil || !e.shape.free(h, i) && (c.by == nil || !c.by.stopping) {
				return false
			}
			n++
		}
	}
	return n >= e.shape.want()
}

// collect starts those of a level whose devices have become free, there or elsewhere.
func (d *decision) collect(l *level) {
	for _, e := range d.keeping() {
		if e.Priority != l.priority {
			continue
		}
		if on := d.choose(e); on != nil {
			d.start(e, on)
		}
	}
}

// keeping is who keeps devices, the first first.
func (d *decision) keeping() []*entry {
	return slices.SortedFunc(maps.Values(d.keepers), func(a, b *entry) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), before(&a.Item, &b.Item))
	})
}

// pass takes from another what is kept for it.
func (d *decision) pass(e *entry, m mark) {
	if m.by != nil && m.by != e && m.hard {
		d.lose(m.by)
	}
}

// lose says that nothing is kept for an item any longer.
func (d *decision) lose(e *entry) {
	d.unmark(e)
	e.reason = nil
	d.out = append(d.out, Action{Do: Keep, Item: e.ID})
}

// unmark lets go what an item keeps.
func (d *decision) unmark(e *entry) {
	for _, sh := range e.Keeps {
		h := d.host(sh.Node)
		if h == nil {
			continue
		}
		for _, v := range sh.Devices {
			if i, ok := h.index[v]; ok && h.devices[i].mark.by == e {
				h.devices[i].mark = mark{}
				h.kept--
				h.ver = d.tick()
			}
		}
	}
	e.Keeps = nil
	delete(d.keepers, e.ID)
}

// keep reserves for a gang that does not fit the free devices of the node that lacks
// fewest, and says so. What needs a host's memory is kept a place for
// as a gang is.
func (d *decision) keep(e *entry) *reason {
	want := e.shape.want()
	p := pool{e.Need.Kind, e.Need.Model}
	if !e.shape.gang || slices.Contains(d.kept, p) {
		return nil
	}
	var on []*host
	var best offer // left: devices that it lacks; busy: strangers hold some that it needs
	total := 0
	for _, h := range d.nodes {
		f := e.shape.at(h, d.now)
		if len(f.on) == 0 {
			continue
		}
		total += len(f.on)
		if e.Spread {
			on = append(on, h)
		}
		if len(f.on) < want {
			continue
		}
		free, coming := d.room(e, h)
		ours := 0
		for _, i := range f.on {
			if !h.devices[i].strange {
				ours++
			}
		}
		o := offer{h: h, left: want - len(free) - len(coming), near: slices.Contains(e.Near, h.ID), busy: ours < want}
		if best.h == nil || cmp.Or(-no(o.busy, best.busy), cmp.Compare(o.left, best.left), no(o.near, best.near)) < 0 {
			best = o
		}
	}
	switch {
	case e.Spread && total >= want:
	case best.h != nil:
		on = []*host{best.h}
	default:
		return nil // it would fit nowhere
	}
	d.kept = append(d.kept, p)
	for _, h := range on {
		free, _ := d.room(e, h)
		for _, i := range e.shape.at(h, d.now).on {
			// Where something runs that gives way to it, nobody else may have that stopped.
			if c := &h.devices[i]; c.by != nil && c.mark.by == nil {
				if gives, _ := d.givesWay(c.by, e); gives {
					free = append(free, i)
				}
			}
		}
		for _, i := range free {
			d.set(e, h, i, false)
		}
	}
	return &reason{e: e, round: d.round, on: on}
}
