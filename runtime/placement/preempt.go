package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// victim is an item that could be stopped, with the devices that this would free.
type victim struct {
	e *entry
	n int
}

// sacrifice is whom an item would stop, and where.
type sacrifice struct {
	h       *host // nil: over several
	who     []victim
	highest int
	oldest  time.Time
	near    bool
}

// preempt stops what gives way to an item that fits nowhere; nil when nothing does.
func (d *decision) preempt(e *entry) *reason {
	var best *sacrifice
	below := 0
	want := e.shape.want()
	for _, h := range d.nodes {
		n := h.below(e.Priority)
		below += n
		if n == 0 || n+h.coming+e.shape.at(h, d.now).free < want {
			continue
		}
		if s := d.sacrifice(e, []*host{h}); s != nil && (best == nil || s.compare(best) < 0) {
			best = s
		}
	}
	hosts := d.nodes
	if best == nil && e.Spread && below > 0 {
		best = d.sacrifice(e, d.nodes)
	}
	if best == nil {
		return nil
	}
	if best.h != nil {
		hosts = []*host{best.h}
	}
	for _, v := range best.who {
		v.e.stopping = true
		d.stopping++
		v.e.Preempted = with(v.e.Preempted, e.Owner, d.now)
		for _, sh := range v.e.on {
			if h := d.host(sh.Node); h != nil {
				h.changed(d.Scheduler)
			}
		}
		why := fmt.Sprintf("%s needs its devices, with priority %d over %d", e.ID, e.Priority, v.e.Priority)
		d.out = append(d.out, Action{Do: Preempt, Item: v.e.ID, For: e.ID, Why: why})
	}
	d.claim(e, hosts)
	return &reason{e: e, round: d.round, coming: true, on: hosts}
}

// with is a copy that has one more: views share the map.
func with(m map[string]time.Time, owner string, at time.Time) map[string]time.Time {
	out := map[string]time.Time{owner: at}
	for o, t := range m {
		if o != owner {
			out[o] = t
		}
	}
	return out
}

// compare prefers the fewest, then the lowest, then the youngest.
func (s *sacrifice) compare(t *sacrifice) int {
	return cmp.Or(cmp.Compare(len(s.who), len(t.who)), cmp.Compare(s.highest, t.highest), t.oldest.Compare(s.oldest), no(s.near, t.near))
}

// sacrifice picks those whose devices, with the free ones, are enough for the item on
// the hosts together; nil when there are none.
func (d *decision) sacrifice(e *entry, hosts []*host) *sacrifice {
	lack := e.shape.want()
	freed := map[*entry]int{}
	for _, h := range hosts {
		f := e.shape.at(h, d.now)
		if len(hosts) == 1 && len(f.on) < lack {
			return nil
		}
		if len(hosts) > 1 && !e.shape.roomy(f, h.memory) {
			continue
		}
		free, coming := d.room(e, h)
		lack -= len(free) + len(coming)
		for _, i := range f.on {
			c := &h.devices[i]
			if c.by == nil || c.by.stopping || c.mark.by != nil {
				continue
			}
			gives, late := d.givesWay(c.by, e)
			d.shielded = d.shielded || late
			if gives {
				freed[c.by]++
			}
		}
	}
	if lack <= 0 {
		return nil // it is memory that it lacks
	}
	var all []victim
	sum := 0
	for v, n := range freed {
		all = append(all, victim{v, n})
		sum += n
	}
	if sum < lack {
		return nil
	}
	// As few as can be are the largest; of the sets of that size the first in this
	// order is taken.
	slices.SortFunc(all, func(a, b victim) int {
		return cmp.Or(cmp.Compare(a.e.Priority, b.e.Priority), b.e.since.Compare(a.e.since), before(&a.e.Item, &b.e.Item))
	})
	size := 0
	for size = range len(all) + 1 {
		if largest(all, size) >= lack {
			break
		}
	}
	s := &sacrifice{highest: math.MinInt}
	memory := int64(0)
	for i, v := range all {
		if len(s.who) == size {
			break
		}
		if v.n+largest(all[i+1:], size-len(s.who)-1) < lack {
			continue // with it the rest would not be enough
		}
		s.who = append(s.who, v)
		lack -= v.n
		s.highest = max(s.highest, v.e.Priority)
		if s.oldest.IsZero() || v.e.since.Before(s.oldest) {
			s.oldest = v.e.since
		}
		if v.e.Need.Kind != device.GPU {
			memory += v.e.Memory
		}
	}
	if len(hosts) == 1 {
		s.h = hosts[0]
		s.near = slices.Contains(e.Near, s.h.ID)
		if f := e.shape.at(s.h, d.now); s.h.soon >= 0 && !e.shape.roomy(f, s.h.soon+memory) {
			return nil
		}
	}
	return s
}

// largest is how many devices the n largest free.
func largest(vs []victim, n int) int {
	sizes := make([]int, len(vs))
	for i, v := range vs {
		sizes[i] = v.n
	}
	slices.SortFunc(sizes, func(a, b int) int { return b - a })
	sum := 0
	for _, x := range sizes[:min(n, len(sizes))] {
		sum += x
	}
	return sum
}
