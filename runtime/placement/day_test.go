package placement

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// day is a cluster of 256 nodes of 8 GPUs with 10,000 items that wait, in virtual
// time. It keeps its own table of who leases what.
type day struct {
	t      testing.TB
	rng    *rand.Rand
	s      *Scheduler
	now    time.Time
	future events
	nodes  map[string]*Node
	leases map[string]map[string]string // node, device: item
	items  map[string]*Item
	on     map[string][]Share
	run    map[string]int // counts an item's runs: what was said of an earlier one is stale
	next   int

	took      []time.Duration // of each decision
	cpu       []time.Duration // processor time of it: others' work on the machine does not count
	starts    int
	stopped   int
	faults    int
	failures  int
	busy      float64 // device-seconds
	wellTotal float64
	last      time.Time
}

// event of the future.
type event struct {
	at time.Time
	n  int
	do func()
}

type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(*event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func (d *day) in(after time.Duration, do func()) {
	d.next++
	heap.Push(&d.future, &event{at: d.now.Add(after), n: d.next, do: do})
}

// around is an exponential time with this mean.
func (d *day) around(mean time.Duration) time.Duration {
	return time.Duration(d.rng.ExpFloat64() * float64(mean))
}

const (
	dayNodes = 256
	dayItems = 10000
)

func newDay(t testing.TB, seed uint64) *day {
	d := &day{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), s: New(DefaultConfig()), now: epoch, last: epoch, nodes: map[string]*Node{},
		leases: map[string]map[string]string{}, items: map[string]*Item{}, on: map[string][]Share{}, run: map[string]int{},
	}
	for i := range dayNodes {
		n := &Node{ID: fmt.Sprintf("n%03d", i), Machine: machine(device.GPU, 8, []string{"A100-40GB", "A100-80GB", "H100"}[i%3], []int64{40, 80, 80}[i%3]<<30)}
		for a := range 8 { // fours on each socket, in pairs
			for b := range a {
				level := device.System
				switch {
				case a/2 == b/2:
					level = device.NVLink
				case a/4 == b/4:
					level = device.HostBridge
				}
				n.Machine.Links = append(n.Machine.Links, device.Link{A: fmt.Sprint("gpu:", b), B: fmt.Sprint("gpu:", a), Level: level})
			}
		}
		d.nodes[n.ID] = n
		d.leases[n.ID] = map[string]string{}
		d.s.SetNode(*n)
	}
	for range dayItems {
		d.submit()
	}
	d.in(d.around(faultEvery), d.fault)
	return d
}

// submit is one more item, of forty owners.
func (d *day) submit() {
	d.next++
	i := &Item{
		ID: fmt.Sprint("i", d.next), Owner: fmt.Sprint("owner", d.rng.IntN(40)), Priority: []int{0, 0, 0, 0, 0, 0, 1, 1, 2, 5}[d.rng.IntN(10)],
		Need:      device.Request{Kind: device.GPU, Count: []int{1, 1, 1, 1, 2, 2, 4, 8}[d.rng.IntN(8)], Model: []string{"", "", "a100", "h100"}[d.rng.IntN(4)]},
		Submitted: d.now, Preemptible: d.rng.IntN(5) > 0, Memory: []int64{0, 20, 60}[d.rng.IntN(3)] << 30,
		Near: []string{fmt.Sprintf("n%03d", d.rng.IntN(dayNodes))},
	}
	if d.rng.IntN(200) == 0 {
		i.Need.Count, i.Spread = 16*(1+d.rng.IntN(8)), true
	}
	d.items[i.ID] = i
	d.s.Wait(*i)
}

// leave lets an item's devices go.
func (d *day) leave(id string) {
	for _, sh := range d.on[id] {
		for _, v := range sh.Devices {
			delete(d.leases[sh.Node], v)
		}
	}
	delete(d.on, id)
	d.run[id]++
}

// again puts an item back.
func (d *day) again(id string, after time.Duration) {
	d.leave(id)
	i := d.items[id]
	i.NotBefore = d.now.Add(after)
	d.s.Wait(*i)
	if after > 0 {
		d.in(after, func() {})
	}
}

// end is an item's end, a failure one time in fifty; another comes in its place.
func (d *day) end(id string) {
	if d.rng.IntN(50) == 0 {
		d.failures++
		d.again(id, time.Duration(1+d.rng.IntN(60))*time.Second)
		return
	}
	d.leave(id)
	d.s.Done(id)
	delete(d.items, id)
	delete(d.run, id)
	d.submit()
}

const faultEvery = 2 * time.Minute

// fault is a node that dies and comes back, or drains for a while, or a device that
// turns sick for a while.
func (d *day) fault() {
	d.faults++
	d.in(d.around(faultEvery), d.fault)
	id := fmt.Sprintf("n%03d", d.rng.IntN(dayNodes))
	n := d.nodes[id]
	if n == nil {
		return
	}
	back := d.around(20 * time.Minute)
	switch d.rng.IntN(3) {
	case 0:
		delete(d.nodes, id)
		d.s.Gone(id)
		d.giveBack(n)
		d.in(back, func() {
			n.Draining = false
			d.nodes[id] = n
			d.s.SetNode(*n)
		})
	case 1:
		n.Draining = true
		d.s.SetNode(*n)
		d.in(30*time.Second, func() { d.giveBack(n) })
		d.in(back, func() { d.change(n, func() { n.Draining = false }) })
	case 2:
		k := d.rng.IntN(len(n.Machine.Devices))
		sick := func(why string) {
			d.change(n, func() {
				n.Machine.Devices = slices.Clone(n.Machine.Devices)
				n.Machine.Devices[k].Sick = why
			})
		}
		sick("ECC errors")
		if who := d.leases[id][n.Machine.Devices[k].ID]; who != "" {
			d.again(who, 0)
		}
		d.in(back, func() { sick("") })
	}
}

// change is news of a node, if it is there.
func (d *day) change(n *Node, f func()) {
	f()
	if d.nodes[n.ID] == n {
		d.s.SetNode(*n)
	}
}

// giveBack puts back all that runs on a node.
func (d *day) giveBack(n *Node) {
	var ids []string
	for _, v := range n.Machine.Devices {
		if id := d.leases[n.ID][v.ID]; id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		d.again(id, 0)
	}
}

// step is what happens next, and the decision that follows.
func (d *day) step() {
	e := heap.Pop(&d.future).(*event)
	d.now = e.at
	for _, at := range d.leases {
		d.busy += float64(len(at)) * d.now.Sub(d.last).Seconds()
	}
	d.wellTotal += float64(8*len(d.nodes)) * d.now.Sub(d.last).Seconds()
	d.last = d.now
	e.do()
	d.decide()
}

func (d *day) decide() {
	runtime.LockOSThread()
	began, spent := time.Now(), processorTime(d.t)
	acts := d.s.Decide(d.now)
	d.took, d.cpu = append(d.took, time.Since(began)), append(d.cpu, processorTime(d.t)-spent)
	runtime.UnlockOSThread()
	for _, a := range acts {
		id, i := a.Item, d.items[a.Item]
		if a.Do == Keep {
			i.Keeps = a.On
			continue
		}
		if a.Do == Preempt {
			d.stopped++
			i.Preempted = with(i.Preempted, d.items[a.For].Owner, d.now)
			run := d.run[id]
			d.in(time.Duration(500+d.rng.IntN(1500))*time.Millisecond, func() {
				if d.run[id] == run && d.on[id] != nil {
					d.again(id, 0)
				}
			})
			continue
		}
		d.starts++
		count := 0
		for _, sh := range a.On {
			n := d.nodes[sh.Node]
			if n == nil || n.Draining {
				d.t.Fatalf("%v: the node is not there", a)
			}
			for _, v := range sh.Devices {
				if who := d.leases[sh.Node][v]; who != "" {
					d.t.Fatalf("%v: %s has %s of %s", a, who, v, sh.Node)
				}
				d.leases[sh.Node][v] = id
				count++
			}
		}
		if count != i.Need.Count {
			d.t.Fatalf("%v: %d devices of %d", a, count, i.Need.Count)
		}
		d.on[id], i.Keeps = a.On, nil
		run := d.run[id]
		d.in(d.around(2*time.Hour), func() {
			if d.run[id] == run && d.on[id] != nil {
				d.end(id)
			}
		})
	}
}

// processorTime is what this thread has had.
func processorTime(t testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// idle finds a device that nobody leases and nothing is kept on, and an item that
// could run there. The decision comes with the event, so what is left now is left for
// good.
func (d *day) idle() {
	type hole struct {
		n     *Node
		count int
	}
	var holes []hole
	for _, n := range d.nodes {
		h := d.s.host(n.ID)
		count := 0
		for j, v := range n.Machine.Devices {
			if !n.Draining && v.Sick == "" && d.leases[n.ID][v.ID] == "" && h.devices[j].mark.by == nil {
				count++
			}
		}
		if count > 0 {
			holes = append(holes, hole{n, count})
		}
	}
	if len(holes) == 0 {
		return
	}
	for id, i := range d.items {
		if d.on[id] != nil || i.NotBefore.After(d.now) {
			continue
		}
		for _, o := range holes {
			if v := o.n.Machine.Devices[0]; o.count >= i.Need.Count && v.MemoryBytes >= i.Memory && (i.Need.Model == "" || i.Need.Model == modelOf(v.Model)) {
				d.t.Fatalf("at %v %+v waits (%s), and %d devices of %s idle", d.now.Sub(epoch), *i, d.s.Why(id), o.count, o.n.ID)
			}
		}
	}
}

func modelOf(s string) string {
	if s == "H100" {
		return "h100"
	}
	return "a100"
}

var hours = flag.Float64("hours", 1, "virtual time of TestDay")

// A day of 2,048 devices with faults, of which plain runs see an hour: no
// device is leased twice, and none idles that an item could have.
func TestDay(t *testing.T) {
	length := time.Duration(*hours * float64(time.Hour))
	d := newDay(t, 1)
	d.decide()
	for n := 0; d.now.Sub(epoch) < length; n++ {
		d.step()
		if n%16 == 0 {
			d.idle()
		}
	}
	t.Logf("%d decisions, %d starts, %d pre-emptions, %d faults, %d failures; %.1f %% of the devices' time in use; %s",
		len(d.took), d.starts, d.stopped, d.faults, d.failures, 100*d.busy/d.wellTotal, quantiles(d.took)+"; processor time: "+quantiles(d.cpu))
}

func quantiles(d []time.Duration) string {
	s := slices.Clone(d)
	slices.Sort(s)
	return fmt.Sprintf("a decision takes %v (median), %v (p99), %v (at most)", s[len(s)/2], s[len(s)*99/100], s[len(s)-1])
}

// BenchmarkDecide is a decision after each event, with 10,000 items that wait for
// 2,048 devices.
func BenchmarkDecide(b *testing.B) {
	d := newDay(b, 2)
	d.decide()
	fill := d.took[0]
	for d.now.Sub(epoch) < 20*time.Minute {
		d.step()
	}
	d.took, d.cpu = nil, nil
	b.ResetTimer()
	for range b.N {
		d.step()
	}
	slices.Sort(d.took)
	b.ReportMetric(float64(d.took[len(d.took)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(d.took[len(d.took)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric(float64(d.took[len(d.took)-1].Microseconds()), "µs-max")
	slices.Sort(d.cpu)
	b.ReportMetric(float64(d.cpu[len(d.cpu)*99/100].Microseconds()), "µs-cpu-p99")
	b.ReportMetric(float64(fill.Microseconds()), "µs-first")
}

// BenchmarkView is the same decision of a view, all indices made anew.
func BenchmarkView(b *testing.B) {
	d := newDay(b, 3)
	d.decide()
	for d.now.Sub(epoch) < 10*time.Minute {
		d.step()
	}
	v := d.s.View(d.now)
	for b.Loop() {
		Decide(v, d.now, DefaultConfig())
	}
}
