package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// shape is what decides where an item may go, with what each host has for it.
type shape struct {
	key   shapeKey
	item  Item // one of them
	items int
	gang  bool  // it may have to be kept devices for: see decision.keep
	hosts []fit // by slot

	// In this round, at this level, nobody's fits.
	round uint64
	level int
}

type shapeKey struct {
	need        device.Request
	either      device.LoadPolicy
	spread      bool
	preemptible bool
	memory      int64
	labels      string
	refused     string
}

// fit is what a host has for a shape.
type fit struct {
	def, ver uint64
	quiet    []int       // GPUs, for a need of either kind
	rest     []int       // devices that could be had if nobody held them
	on       []int       // which of the two counts now
	kind     device.Kind // of on
	free     int         // of on, without those that are kept
	bytes    int64       // of a device's memory
}

func (s *Scheduler) shapeOf(i *Item) *shape {
	k := shapeKey{need: i.Need, either: i.Either, spread: i.Spread, preemptible: i.Preemptible, memory: i.Memory}
	if len(i.Labels) > 0 {
		var b strings.Builder
		for _, l := range slices.Sorted(maps.Keys(i.Labels)) {
			fmt.Fprintf(&b, "%q=%q ", l, i.Labels[l])
		}
		k.labels = b.String()
	}
	if len(i.Refused) > 0 {
		k.refused = fmt.Sprintf("%q", i.Refused)
	}
	sh := s.shapes[k]
	if sh == nil {
		sh = &shape{key: k, item: *i, gang: i.Need.Count > 1 || i.Memory > 0 && i.Need.Kind != device.GPU}
		s.shapes[k] = sh
	}
	sh.items++
	return sh
}

func (s *Scheduler) release(sh *shape) {
	if sh.items--; sh.items == 0 {
		delete(s.shapes, sh.key)
	}
}

// want is the least number of devices.
func (sh *shape) want() int { return max(1, sh.item.Need.Count) }

// easier tells whether wherever o fits sh fits too.
func (sh *shape) easier(o *shape) bool {
	if sh == o {
		return true
	}
	a, b := &sh.key, &o.key
	return a.need.Kind == b.need.Kind && (a.need.Model == "" || a.need.Model == b.need.Model) && a.need.Count <= b.need.Count &&
		a.memory <= b.memory && a.either == b.either && a.labels == "" && a.refused == "" &&
		(a.spread || !b.spread || sh.want() == 1) && (a.preemptible || !b.preemptible)
}

// refusal is what a node said of such an item lately, "" when it did not.
func (sh *shape) refusal(node string, now time.Time) string {
	for _, r := range sh.item.Refused {
		if r.Node == node && r.Until.After(now) {
			return cmp.Or(r.Why, "refused it")
		}
	}
	return ""
}

// at is what a host has for the shape.
func (sh *shape) at(h *host, now time.Time) *fit {
	for len(sh.hosts) <= h.slot {
		sh.hosts = append(sh.hosts, fit{})
	}
	f := &sh.hosts[h.slot]
	if f.def != h.def {
		sh.define(f, h)
	}
	// Refusals end by themselves.
	if f.ver != h.ver || len(sh.item.Refused) > 0 {
		sh.count(f, h, now)
	}
	return f
}

// define says which devices could be had if nobody held them.
func (sh *shape) define(f *fit, h *host) {
	*f = fit{def: h.def}
	if h.Draining {
		return
	}
	for k, v := range sh.item.Labels {
		if h.Labels[k] != v {
			return
		}
	}
	need := sh.item.Need
	if need.Kind == device.Auto {
		need.Kind = device.CPU
		if sh.item.Either != (device.LoadPolicy{}) {
			for i, d := range h.Machine.Devices {
				if sh.fits(&d, device.Request{Kind: device.GPU}) && sh.item.Either.Next(device.Auto, d.Load) == device.GPU {
					f.quiet = append(f.quiet, i)
				}
			}
		}
	}
	for i := range h.Machine.Devices {
		if d := &h.Machine.Devices[i]; sh.fits(d, need) {
			f.rest = append(f.rest, i)
			f.bytes = d.MemoryBytes
		}
	}
}

func (sh *shape) fits(d *device.Device, need device.Request) bool {
	return d.Kind == need.Kind && d.Sick == "" && d.MIG != "on" &&
		(need.Model == "" || strings.Contains(strings.ToLower(d.Model), need.Model)) &&
		(d.Kind != device.GPU || d.MemoryBytes == 0 || d.MemoryBytes >= sh.item.Memory)
}

// count says how many are free.
func (sh *shape) count(f *fit, h *host, now time.Time) {
	f.ver, f.free, f.on = h.ver, 0, nil
	if sh.refusal(h.ID, now) != "" {
		return
	}
	f.on, f.kind = f.quiet, device.GPU
	f.free = sh.freeOf(f, h)
	if f.free == 0 && len(f.rest) > 0 {
		f.on, f.kind = f.rest, h.Machine.Devices[f.rest[0]].Kind
		f.free = sh.freeOf(f, h)
	}
}

// roomy tells whether the host's memory is enough, now or once those who stop have
// ended.
func (sh *shape) roomy(f *fit, memory int64) bool {
	return f.kind == device.GPU || memory < 0 || memory >= sh.item.Memory
}

func (sh *shape) freeOf(f *fit, h *host) int {
	n := 0
	if !sh.roomy(f, h.memory) {
		return 0
	}
	for _, i := range f.on {
		if h.devices[i].mark.by == nil && sh.free(h, i) {
			n++
		}
	}
	return n
}

// free tells whether nobody has a device, and what a stranger's processes left of its
// memory is enough.
func (sh *shape) free(h *host, i int) bool {
	c := &h.devices[i]
	if c.by != nil || c.strange {
		return false
	}
	d := &h.Machine.Devices[i]
	return d.Kind != device.GPU || d.MemoryBytes == 0 || d.MemoryBytes-d.UsedBytes >= sh.item.Memory
}
