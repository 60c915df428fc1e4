package placement

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// world is a cluster as the caller of a Scheduler knows it, kept by other means.
type world struct {
	t     *rapid.T
	s     *Scheduler
	now   time.Time
	nodes map[string]*Node
	items map[string]*Item
	on    map[string][]Share // of what runs
	stop  map[string]bool    // of what runs
	next  int
}

func newWorld(t *rapid.T) *world {
	return &world{t: t, s: New(DefaultConfig()), now: epoch, nodes: map[string]*Node{}, items: map[string]*Item{}, on: map[string][]Share{}, stop: map[string]bool{}}
}

func (w *world) setNode(id string) {
	n := &Node{ID: id, Held: map[string]string{}, Draining: rapid.IntRange(0, 9).Draw(w.t, "drain") == 0}
	kind := rapid.SampledFrom([]device.Kind{device.GPU, device.GPU, device.CPU}).Draw(w.t, "kind")
	if old := w.nodes[id]; old != nil {
		kind = old.Machine.Devices[0].Kind
	}
	n.Machine = machine(kind, rapid.IntRange(1, 5).Draw(w.t, "devices"), "", int64(rapid.SampledFrom([]int{0, 24, 80}).Draw(w.t, "gb"))<<30)
	if old := w.nodes[id]; old != nil {
		n.Machine = old.Machine
	}
	n.Machine.Devices = slices.Clone(n.Machine.Devices)
	for i := range n.Machine.Devices {
		d := &n.Machine.Devices[i]
		d.Sick = ""
		switch rapid.IntRange(0, 11).Draw(w.t, "fault") {
		case 0:
			d.Sick = "hot"
		case 1:
			if w.holder(id, d.ID) == "" {
				n.Held[d.ID] = "stranger"
			}
		}
	}
	w.nodes[id] = n
	w.s.SetNode(*n)
}

func (w *world) holder(node, dev string) string {
	for id, on := range w.on {
		for _, sh := range on {
			if sh.Node == node && slices.Contains(sh.Devices, dev) {
				return id
			}
		}
	}
	return ""
}

func (w *world) submit() {
	w.next++
	i := &Item{
		ID: fmt.Sprint("i", w.next), Owner: rapid.SampledFrom([]string{"ada", "bob", "eve"}).Draw(w.t, "owner"),
		Priority: rapid.IntRange(0, 2).Draw(w.t, "priority"), Preemptible: rapid.Bool().Draw(w.t, "preemptible"),
		Need:      device.Request{Kind: rapid.SampledFrom([]device.Kind{device.GPU, device.GPU, device.CPU}).Draw(w.t, "kind"), Count: rapid.IntRange(0, 6).Draw(w.t, "count")},
		Submitted: w.now, Spread: rapid.IntRange(0, 3).Draw(w.t, "spread") == 0,
	}
	if i.Need.Kind == device.GPU && rapid.Bool().Draw(w.t, "large") {
		i.Memory = 40 << 30
	}
	w.items[i.ID] = i
	w.s.Wait(*i)
}

// again puts back what ran, or waits.
func (w *world) again(id string, later bool) {
	i := w.items[id]
	if later {
		i.NotBefore = w.now.Add(5 * time.Second)
	}
	i.Keeps = nil
	delete(w.on, id)
	delete(w.stop, id)
	w.s.Wait(*i)
}

func (w *world) running() []string {
	var out []string
	for id := range w.on {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// fits tells by the plainest of means whether an item could have the devices that free
// lets through.
func (w *world) fits(i *Item, free func(n *Node, d *device.Device) bool) bool {
	total, want := 0, max(1, i.Need.Count)
	for _, n := range w.nodes {
		have := 0
		for j := range n.Machine.Devices {
			d := &n.Machine.Devices[j]
			if !n.Draining && d.Kind == i.Need.Kind && d.Sick == "" && n.Held[d.ID] == "" && (d.MemoryBytes == 0 || d.MemoryBytes >= i.Memory) && free(n, d) {
				have++
			}
		}
		if have >= want {
			return true
		}
		total += have
	}
	return i.Spread && total >= want
}

func (w *world) mark(node, dev string) mark {
	h := w.s.host(node)
	return h.devices[h.index[dev]].mark
}

// decide takes a decision and checks all that can be said of it.
func (w *world) decide() {
	t := w.t
	held := map[string]string{} // node/device to item, before
	for id, on := range w.on {
		for _, sh := range on {
			for _, d := range sh.Devices {
				held[sh.Node+"/"+d] = id
			}
		}
	}
	want := Decide(w.s.View(w.now), w.now, w.s.cfg)
	want = slices.DeleteFunc(want, func(a Action) bool { return a.Do == Wait })
	got := w.s.Decide(w.now)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the scheduler decides\n%v\nits view\n%v", got, want)
	}
	startedBy := map[string]*Item{} // node/device to who got it now
	for _, a := range got {
		i := w.items[a.Item]
		if a.Do == Keep {
			i.Keeps = a.On
			continue
		}
		if a.Do == Preempt {
			victim := i
			by := w.items[a.For]
			if w.on[a.Item] == nil || w.stop[a.Item] || !victim.Preemptible || victim.Priority >= by.Priority || w.on[a.For] != nil {
				t.Fatalf("%v of %+v for %+v", a, victim, by)
			}
			if last, ok := victim.Preempted[by.Owner]; ok && w.now.Sub(last) < w.s.cfg.Protect {
				t.Fatalf("%v: it was stopped for the same owner %v ago", a, w.now.Sub(last))
			}
			victim.Preempted = with(victim.Preempted, by.Owner, w.now)
			w.stop[a.Item] = true
			continue
		}
		if w.on[a.Item] != nil || i.NotBefore.After(w.now) {
			t.Fatalf("%v: it runs or must not run yet", a)
		}
		count := 0
		for _, sh := range a.On {
			n := w.nodes[sh.Node]
			if n == nil || n.Draining {
				t.Fatalf("%v: on a node that is not there", a)
			}
			for _, d := range sh.Devices {
				count++
				key := sh.Node + "/" + d
				at := slices.IndexFunc(n.Machine.Devices, func(x device.Device) bool { return x.ID == d })
				if at < 0 || n.Held[d] != "" || held[key] != "" || startedBy[key] != nil {
					t.Fatalf("%v: %s is held already", a, key)
				}
				if x := n.Machine.Devices[at]; x.Kind != i.Need.Kind || x.Sick != "" || x.MemoryBytes != 0 && x.MemoryBytes < i.Memory {
					t.Fatalf("%v: %+v does not fit", a, x)
				}
				startedBy[key] = i
			}
		}
		if count == 0 || i.Need.Count > 0 && count != i.Need.Count || len(a.On) > 1 && !i.Spread {
			t.Fatalf("%v: %d devices of %v", a, count, i.Need)
		}
		w.on[a.Item], i.Keeps = a.On, nil
	}
	// Nothing is kept for two, and all that is kept for one is enough.
	keeps := map[string]string{}
	for id, i := range w.items {
		n := 0
		for _, sh := range i.Keeps {
			for _, d := range sh.Devices {
				if other := keeps[sh.Node+"/"+d]; other != "" {
					t.Fatalf("%s of %s is kept for %s and %s", d, sh.Node, other, id)
				}
				keeps[sh.Node+"/"+d] = id
				n++
			}
		}
		if n > 0 && n < max(1, i.Need.Count) {
			t.Fatalf("%d devices are kept for %+v", n, *i)
		}
	}
	// What is free beside those that are stopped is for whom they are stopped.
	for _, a := range got {
		if a.Do != Preempt || len(w.on[a.Item]) > 1 {
			continue
		}
		for _, sh := range w.on[a.Item] {
			for _, d := range w.nodes[sh.Node].Machine.Devices {
				if m := w.mark(sh.Node, d.ID); m.by != nil && m.by.ID != a.For {
					continue // it was kept for another
				}
				if by := startedBy[sh.Node+"/"+d.ID]; by != nil && by.Priority < w.items[a.For].Priority {
					t.Fatalf("%v (%+v), and %+v starts beside it on %v", a, *w.items[a.For], *by, w.on[a.Item])
				}
			}
		}
	}
	// Once more, with nothing new, nobody is stopped for whom others are stopped already.
	served := map[string]bool{}
	for _, a := range got {
		served[a.For] = a.Do == Preempt
	}
	for _, a := range Decide(w.s.View(w.now), w.now, w.s.cfg) {
		if a.Do == Preempt && served[a.For] {
			t.Fatalf("decided again at once: %v", a)
		}
	}
	late := false
	for _, i := range w.items {
		late = late || len(i.Preempted) > 0
	}
	for id, i := range w.items {
		if w.on[id] != nil || i.NotBefore.After(w.now) {
			continue
		}
		// Devices that it could have had: those that are free, and those that went to
		// lower priorities; not those kept for others, unless it, and whatever else there is, could be
		// stopped there.
		could := func(n *Node, d *device.Device) bool {
			key := n.ID + "/" + d.ID
			if by := startedBy[key]; held[key] != "" || by != nil && by.Priority >= i.Priority {
				return false
			}
			m := w.mark(n.ID, d.ID)
			if m.by == nil || m.by.ID == id || m.by.Priority < i.Priority {
				return true
			}
			return !m.hard && i.Preemptible && i.Priority < m.by.Priority && !late
		}
		if w.fits(i, could) {
			t.Fatalf("%+v waits (%s), and could run", *i, w.s.Why(id))
		}
		why := w.s.Why(id)
		if why == "" {
			t.Fatalf("%s waits without a reason", id)
		}
		idle := func(n *Node, d *device.Device) bool {
			return held[n.ID+"/"+d.ID] == "" && startedBy[n.ID+"/"+d.ID] == nil
		}
		if w.fits(i, idle) && !strings.Contains(why, "kept for") && !strings.Contains(why, "being stopped") {
			t.Fatalf("%s waits while devices idle, and says: %s", id, why)
		}
	}
}

func TestDecisions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			w.setNode(fmt.Sprint("n", i))
		}
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0, 1, 2, 3:
				w.submit()
			case 4, 5:
				if r := w.running(); len(r) > 0 {
					id := rapid.SampledFrom(r).Draw(t, "ends")
					delete(w.on, id)
					delete(w.stop, id)
					delete(w.items, id)
					w.s.Done(id)
				}
			case 6:
				for _, id := range w.running() {
					if w.stop[id] {
						w.again(id, false)
					}
				}
			case 7:
				if r := w.running(); len(r) > 0 {
					w.again(rapid.SampledFrom(r).Draw(t, "fails"), true)
				}
			case 8:
				id := fmt.Sprint("n", rapid.IntRange(0, 4).Draw(t, "node"))
				if w.nodes[id] != nil && rapid.Bool().Draw(t, "goes") {
					delete(w.nodes, id)
					w.s.Gone(id)
					for _, r := range w.running() {
						if slices.ContainsFunc(w.on[r], func(sh Share) bool { return sh.Node == id }) {
							w.again(r, false)
						}
					}
				} else {
					w.setNode(id)
				}
			case 9:
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 700).Draw(t, "seconds")) * time.Second)
			}
			w.decide()
		}
	})
}

// Everything that some node could take starts within as many rounds as there are items
// ahead of it, when a round ends what has run longest, and gangs among them.
func TestAllStart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			n := &Node{ID: fmt.Sprint("n", i), Machine: machine(device.GPU, rapid.IntRange(1, 5).Draw(t, "devices"), "", 0)}
			w.nodes[n.ID] = n
			w.s.SetNode(*n)
		}
		for range rapid.IntRange(1, 25).Draw(t, "items") {
			w.submit()
		}
		for id, i := range w.items {
			if !w.fits(i, func(*Node, *device.Device) bool { return true }) {
				w.s.Done(id)
				delete(w.items, id)
			}
		}
		var order []string
		rounds := 4 * (len(w.items) + 1)
		for range rounds {
			before := len(w.on)
			w.decide()
			for _, id := range w.running() {
				if w.stop[id] {
					w.again(id, false)
				} else if !slices.Contains(order, id) {
					order = append(order, id)
				}
			}
			order = slices.DeleteFunc(order, func(id string) bool { return w.on[id] == nil })
			if len(w.items) == 0 {
				return
			}
			if before == 0 && len(w.on) == 0 && len(w.stop) == 0 {
				t.Fatalf("nothing runs, and %d items wait: %s", len(w.items), fmt.Sprint(w.s.View(w.now).Waiting))
			}
			if len(order) > 0 {
				id := order[0]
				delete(w.on, id)
				delete(w.items, id)
				w.s.Done(id)
			}
			w.now = w.now.Add(time.Second)
		}
		t.Fatalf("%d items did not start within %d rounds", len(w.items), rounds)
	})
}

// A gang is not starved by an endless stream of single devices beside it.
func TestGangAmongAStream(t *testing.T) {
	for _, spread := range []bool{false, true} {
		s := New(DefaultConfig())
		for i := range 4 {
			s.SetNode(Node{ID: fmt.Sprint("n", i), Machine: machine(device.GPU, 4, "", 0), Held: map[string]string{"gpu:0": map[bool]string{true: "a stranger"}[i == 0]}})
		}
		now := epoch
		var run []string
		next := 0
		need := device.Request{Kind: device.GPU, Count: 4}
		if spread {
			need.Count = 10
		}
		for round := 0; ; round++ {
			for range 3 {
				next++
				s.Wait(Item{ID: fmt.Sprint("s", next), Owner: fmt.Sprint(next % 3), Need: device.Request{Kind: device.GPU, Count: 1}, Submitted: now})
			}
			if round == 20 {
				s.Wait(Item{ID: "gang", Owner: "ada", Need: need, Submitted: now, Spread: spread})
			}
			began := false
			for _, a := range s.Decide(now) {
				began = began || a.Item == "gang"
				run = append(run, a.Item)
			}
			if began {
				t.Logf("after %d rounds", round-20)
				break
			}
			if round > 60 {
				t.Fatalf("the gang waits: %s", s.Why("gang"))
			}
			s.Done(run[0]) // one ends a round
			run = run[1:]
			now = now.Add(time.Second)
		}
	}
}

// Those who are stopped are the fewest, and of these the lowest.
func TestVictims(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := View{}
		type set struct{ count, highest int }
		best := set{}
		item := Item{ID: "x", Owner: "ada", Priority: 3, Need: device.Request{Kind: device.GPU, Count: rapid.IntRange(1, 6).Draw(t, "count")}}
		for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			n := Node{ID: fmt.Sprint("n", i), Machine: machine(device.GPU, 6, "", 0)}
			v.Nodes = append(v.Nodes, n)
			var here []Running
			for at := 0; at < 6; {
				k := min(rapid.IntRange(1, 3).Draw(t, "devices"), 6-at)
				r := Running{Since: epoch.Add(-time.Duration(rapid.IntRange(0, 3).Draw(t, "age")) * time.Minute)}
				r.ID, r.Owner, r.Need = fmt.Sprintf("r%d.%d", i, at), "bob", device.Request{Kind: device.GPU, Count: k}
				r.Priority, r.Preemptible = rapid.IntRange(0, 3).Draw(t, "priority"), rapid.IntRange(0, 3).Draw(t, "preemptible") > 0
				sh := Share{Node: n.ID}
				for range k {
					sh.Devices = append(sh.Devices, fmt.Sprint("gpu:", at))
					at++
				}
				r.On = []Share{sh}
				here = append(here, r)
			}
			v.Running = append(v.Running, here...)
			for m := range uint(1) << len(here) {
				s, freed := set{count: bits.OnesCount(m)}, 0
				ok := true
				for j, r := range here {
					if m>>j&1 == 1 {
						freed += r.Need.Count
						s.highest = max(s.highest, r.Priority)
						ok = ok && r.Preemptible && r.Priority < item.Priority
					}
				}
				if ok && freed >= item.Need.Count && (best.count == 0 || cmp.Or(cmp.Compare(s.count, best.count), cmp.Compare(s.highest, best.highest)) < 0) {
					best = s
				}
			}
		}
		v.Waiting = []Item{item}
		got := set{}
		for _, a := range Decide(v, epoch, DefaultConfig()) {
			if a.Do == Preempt {
				got.count++
				for _, r := range v.Running {
					if r.ID == a.Item {
						got.highest = max(got.highest, r.Priority)
					}
				}
			}
		}
		if got.count != best.count || got.count > 0 && got.highest != best.highest {
			t.Fatalf("stopped %+v, the best is %+v", got, best)
		}
	})
}
