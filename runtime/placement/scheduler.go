package placement

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// Scheduler keeps a view and its indices; what happens comes in by its methods. Its
// starts and pre-emptions count as done until the caller says otherwise. It belongs to
// one goroutine.
//
// An owner's use of devices fades: after a Window 1/e of it still counts.
type Scheduler struct {
	cfg      Config
	at       time.Time         // of the owners' use
	nodes    []*host           // by ID
	items    map[string]*entry // waiting and running
	running  map[string]*entry
	later    map[string]*entry // waiting for their NotBefore
	keepers  map[string]*entry // waiting, with Keeps
	levels   []*level          // the highest priority first
	shapes   map[shapeKey]*shape
	owners   map[string]*owner
	stopping int    // of those that run
	round    uint64 // counts decisions
	version  uint64 // of hosts, see tick
	slots    int    // of the tables of shapes
	free     []int  // slots of hosts that went
}

// host is a node and who is on it.
type host struct {
	Node
	slot    int
	def     uint64 // changes with Node
	ver     uint64 // changes with anything
	index   map[string]int
	devices []cell
	kept    int // devices with a mark
	runs    map[string]*entry
	memory  int64   // bytes of the host that are free; -1 is not known
	soon    int64   // memory once those who stop have ended
	coming  int     // devices of those who stop
	gives   []gives // the lowest priority first
}

// gives is how many devices would be free if those of a priority were stopped that
// allow it.
type gives struct{ priority, devices int }

// below is how many devices work of lower priority has that can be stopped.
func (h *host) below(priority int) int {
	n := 0
	for _, g := range h.gives {
		if g.priority < priority {
			n += g.devices
		}
	}
	return n
}

// cell is one device.
type cell struct {
	by      *entry // who runs there
	strange bool   // somebody else holds it
	mark    mark
}

// mark keeps a device for an item, for one decision. A soft one is a reservation; a
// hard one comes of a pre-emption: only a higher priority passes it.
type mark struct {
	by   *entry
	hard bool
}

// entry is an item.
type entry struct {
	Item
	shape    *shape
	group    *group  // while it is in the queue
	on       []Share // nil while it waits
	count    int     // devices of on
	since    time.Time
	stopping bool
	reason   *reason // where it differs from its group's
}

// level is all that waits at one priority.
type level struct {
	priority int
	queues   []*queue // by owner
}

// queue is an owner's part of a level.
type queue struct {
	owner  *owner
	groups []*group // by shape

	// In the round:
	open  []*group // those that may still start something
	first *group   // of open, the one with the oldest item; nil is not known
}

// group is items that differ in age and data alone: what keeps one waiting keeps all.
type group struct {
	shape   *shape
	level   *level
	queue   *queue
	entries []*entry // the oldest first

	// In the round:
	round  uint64
	seen   int     // of what failed for its owner: compared with it
	next   int     // those before it were dealt with
	reason *reason // of the first that waits, if there is more to it than devices

	text      string // why all of them wait, in words, as of this round
	textRound uint64
}

type owner struct {
	name  string
	used  float64 // devices, faded mean
	inUse int
	share float64
}

func (o *owner) weight() float64 { return (o.used + float64(o.inUse)) / o.share }

// New has no nodes and no items.
func New(c Config) *Scheduler {
	return &Scheduler{
		cfg: c, items: map[string]*entry{}, running: map[string]*entry{}, later: map[string]*entry{}, keepers: map[string]*entry{},
		shapes: map[shapeKey]*shape{}, owners: map[string]*owner{},
	}
}

func newScheduler(v View, now time.Time, c Config) *Scheduler {
	s := New(c)
	s.at = now
	for o, u := range v.Usage {
		s.owner(o).used = u
	}
	for _, n := range v.Nodes {
		s.SetNode(n)
	}
	for _, r := range v.Running {
		s.Run(r)
	}
	for _, i := range v.Waiting {
		s.Wait(i)
	}
	return s
}

// View is what the scheduler knows now.
func (s *Scheduler) View(now time.Time) View {
	s.advance(now)
	v := View{Usage: map[string]float64{}}
	for _, n := range s.nodes {
		v.Nodes = append(v.Nodes, n.Node)
	}
	for _, e := range s.queue() {
		v.Waiting = append(v.Waiting, e.Item)
	}
	for _, id := range slices.Sorted(maps.Keys(s.running)) {
		e := s.running[id]
		v.Running = append(v.Running, Running{Item: e.Item, On: e.on, Since: e.since, Stopping: e.stopping})
	}
	for _, o := range s.owners {
		v.Usage[o.name] = o.used
	}
	return v
}

func (s *Scheduler) owner(name string) *owner {
	o := s.owners[name]
	if o == nil {
		o = &owner{name: name, share: s.cfg.share(name)}
		s.owners[name] = o
	}
	return o
}

func (s *Scheduler) find(id string) (int, bool) {
	return slices.BinarySearchFunc(s.nodes, id, func(h *host, id string) int { return strings.Compare(h.ID, id) })
}

func (s *Scheduler) host(id string) *host {
	if i, ok := s.find(id); ok {
		return s.nodes[i]
	}
	return nil
}

// SetNode adds a node, or says what it is now.
func (s *Scheduler) SetNode(n Node) {
	i, ok := s.find(n.ID)
	if !ok {
		h := &host{slot: s.slots}
		if k := len(s.free); k > 0 {
			h.slot, s.free = s.free[k-1], s.free[:k-1]
		} else {
			s.slots++
		}
		s.nodes = slices.Insert(s.nodes, i, h)
	}
	h := s.nodes[i]
	h.Node = n
	h.def, h.ver = s.tick(), s.tick()
	h.index, h.runs = map[string]int{}, map[string]*entry{}
	h.devices = make([]cell, len(n.Machine.Devices))
	for j, d := range n.Machine.Devices {
		h.index[d.ID] = j
		h.devices[j].strange = n.Held[d.ID] != ""
	}
	for _, e := range s.running {
		for _, sh := range e.on {
			if sh.Node == n.ID {
				h.put(e, sh)
			}
		}
	}
	h.changed(s)
}

// tick is a number that no version had before.
func (s *Scheduler) tick() uint64 {
	s.version++
	return s.version
}

// Gone takes a node out. What ran there still counts as running: the caller says what
// becomes of it.
func (s *Scheduler) Gone(id string) {
	if i, ok := s.find(id); ok {
		s.free = append(s.free, s.nodes[i].slot)
		s.nodes = slices.Delete(s.nodes, i, i+1)
	}
}

func (h *host) put(e *entry, sh Share) {
	h.runs[e.ID] = e
	for _, id := range sh.Devices {
		if j, ok := h.index[id]; ok && h.devices[j].by == nil {
			h.devices[j].by = e
		}
	}
}

// changed counts anew what depends on who runs there.
func (h *host) changed(s *Scheduler) {
	h.ver = s.tick()
	h.memory, h.coming, h.gives = -1, 0, h.gives[:0]
	if h.Machine.MemoryBytes > 0 {
		h.memory = h.Machine.MemoryBytes
	}
	var stopping int64
	for i := range h.devices {
		switch e := h.devices[i].by; {
		case e == nil:
		case e.stopping:
			h.coming++
		case e.Preemptible:
			j, ok := slices.BinarySearchFunc(h.gives, e.Priority, func(g gives, p int) int { return g.priority - p })
			if !ok {
				h.gives = slices.Insert(h.gives, j, gives{priority: e.Priority})
			}
			h.gives[j].devices++
		}
	}
	for _, e := range h.runs {
		if e.Need.Kind == device.GPU {
			continue
		}
		if e.stopping {
			stopping += e.Memory
		}
		if h.memory >= 0 {
			h.memory = max(0, h.memory-e.Memory)
		}
	}
	if h.FreeBytes > 0 && (h.memory < 0 || h.FreeBytes < h.memory) {
		h.memory = h.FreeBytes
	}
	h.soon = h.memory
	if h.soon >= 0 {
		h.soon += stopping
	}
}

// Wait puts an item into the queue: a new one, or one whose run has ended.
func (s *Scheduler) Wait(i Item) {
	s.Done(i.ID)
	e := &entry{Item: i}
	e.shape = s.shapeOf(&e.Item)
	s.items[i.ID] = e
	if len(e.Keeps) > 0 {
		s.keepers[i.ID] = e
	}
	if i.NotBefore.After(s.at) {
		s.later[i.ID] = e
	} else {
		s.enqueue(e)
	}
}

// Run says that an item runs.
func (s *Scheduler) Run(r Running) {
	s.Done(r.ID)
	e := &entry{Item: r.Item, since: r.Since, stopping: r.Stopping}
	s.items[r.ID] = e
	if r.Stopping {
		s.stopping++
	}
	s.run(e, r.On, r.Since)
}

// Done forgets an item: it has ended, or was cancelled.
func (s *Scheduler) Done(id string) {
	e := s.items[id]
	if e == nil {
		return
	}
	delete(s.items, id)
	delete(s.later, id)
	delete(s.keepers, id)
	if e.on == nil {
		s.dequeue(e)
		s.release(e.shape)
		return
	}
	delete(s.running, id)
	if e.stopping {
		s.stopping--
	}
	s.owner(e.Owner).inUse -= e.count
	for _, sh := range e.on {
		h := s.host(sh.Node)
		if h == nil {
			continue
		}
		delete(h.runs, id)
		for _, d := range sh.Devices {
			if j, ok := h.index[d]; ok && h.devices[j].by == e {
				h.devices[j].by = nil
			}
		}
		h.changed(s)
	}
}

// run books devices for an item that has left the queue.
func (s *Scheduler) run(e *entry, on []Share, since time.Time) {
	e.on, e.since = on, since
	if e.on == nil {
		e.on = []Share{}
	}
	s.running[e.ID] = e
	for _, sh := range on {
		e.count += len(sh.Devices)
		if h := s.host(sh.Node); h != nil {
			h.put(e, sh)
			h.changed(s)
		}
	}
	s.owner(e.Owner).inUse += e.count
}

func (s *Scheduler) enqueue(e *entry) {
	i, ok := slices.BinarySearchFunc(s.levels, e.Priority, func(l *level, p int) int { return p - l.priority })
	if !ok {
		s.levels = slices.Insert(s.levels, i, &level{priority: e.Priority})
	}
	l := s.levels[i]
	i, ok = slices.BinarySearchFunc(l.queues, e.Owner, func(q *queue, o string) int { return strings.Compare(q.owner.name, o) })
	if !ok {
		l.queues = slices.Insert(l.queues, i, &queue{owner: s.owner(e.Owner)})
	}
	q := l.queues[i]
	i = slices.IndexFunc(q.groups, func(g *group) bool { return g.shape == e.shape })
	if i < 0 {
		i = len(q.groups)
		q.groups = append(q.groups, &group{shape: e.shape, level: l, queue: q})
	}
	g := q.groups[i]
	i, _ = slices.BinarySearchFunc(g.entries, e, func(a, b *entry) int { return before(&a.Item, &b.Item) })
	g.entries = slices.Insert(g.entries, i, e)
	e.group = g
}

func (s *Scheduler) dequeue(e *entry) {
	g := e.group
	if g == nil {
		return
	}
	e.group = nil
	if i, ok := slices.BinarySearchFunc(g.entries, e, func(a, b *entry) int { return before(&a.Item, &b.Item) }); ok {
		g.entries = slices.Delete(g.entries, i, i+1)
	}
	if len(g.entries) > 0 {
		return
	}
	g.queue.groups = slices.DeleteFunc(g.queue.groups, func(o *group) bool { return o == g })
	if len(g.queue.groups) == 0 {
		g.level.queues = slices.DeleteFunc(g.level.queues, func(o *queue) bool { return o == g.queue })
	}
	if len(g.level.queues) == 0 {
		s.levels = slices.DeleteFunc(s.levels, func(o *level) bool { return o == g.level })
	}
}

// advance fades the owners' use up to now.
func (s *Scheduler) advance(now time.Time) {
	if s.at.IsZero() {
		s.at = now
	}
	if !now.After(s.at) {
		return
	}
	keep := math.Exp(-float64(now.Sub(s.at)) / float64(s.cfg.Window))
	s.at = now
	for _, o := range s.owners {
		o.used = o.used*keep + float64(o.inUse)*(1-keep)
	}
}

// wake moves to the queue what has waited long enough.
func (s *Scheduler) wake(now time.Time) {
	for id, e := range s.later {
		if !e.NotBefore.After(now) {
			delete(s.later, id)
			s.enqueue(e)
		}
	}
}

// Why is the reason that an item waits, as of the last decision; "" when it does not.
func (s *Scheduler) Why(id string) string {
	if e := s.items[id]; e != nil && e.on == nil {
		return s.why(e)
	}
	return ""
}
