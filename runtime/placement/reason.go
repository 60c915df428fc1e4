package placement

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// reason is why an item waits, put into words only when somebody asks.
type reason struct {
	e      *entry
	round  uint64
	coming bool    // others are being stopped for it
	on     []*host // that keep devices for e
}

// maxNamed is how many nodes a reason names one by one.
const maxNamed = 8

func (s *Scheduler) why(e *entry) string {
	if s.later[e.ID] != nil {
		return "is tried again at " + e.NotBefore.UTC().Format("15:04:05")
	}
	if e.group.round != s.round {
		return "was not looked at yet"
	}
	r := e.reason
	if r == nil || r.round != s.round {
		r = e.group.reason
	}
	var head string
	if r != nil && r.e == e {
		var names []string
		for _, h := range r.on[:min(len(r.on), maxNamed)] {
			names = append(names, h.name())
		}
		if len(r.on) > maxNamed {
			names = append(names, fmt.Sprintf("%d more", len(r.on)-maxNamed))
		}
		if r.coming {
			return "others are being stopped on " + strings.Join(names, ", ") + " for it"
		}
		head = "what is free on " + strings.Join(names, ", ") + " is kept for it; "
	}
	if head != "" {
		return head + s.lacks(e)
	}
	if g := e.group; g.textRound != s.round {
		g.text, g.textRound = s.lacks(e), s.round
	}
	return e.group.text
}

// lacks says what keeps an item off the nodes.
func (s *Scheduler) lacks(e *entry) string {
	if len(s.nodes) == 0 {
		return "there is no node"
	}
	need := e.Need.String()
	if len(s.nodes) <= maxNamed {
		var texts []string
		for _, h := range s.nodes {
			texts = append(texts, h.name()+": "+s.lacksOn(e, h))
		}
		return need + " does not fit: " + strings.Join(texts, "; ")
	}
	able, most, where := 0, -1, ""
	for _, h := range s.nodes {
		f := e.shape.at(h, s.at)
		if len(f.on) == 0 || len(f.on) < e.shape.want() && !e.Spread {
			continue
		}
		able++
		if f.free > most {
			most, where = f.free, h.name()
		}
	}
	if able == 0 {
		return fmt.Sprintf("%s does not fit: none of %d nodes has such devices", need, len(s.nodes))
	}
	return fmt.Sprintf("%s does not fit: %d of %d nodes have such devices, at most %s, on %s%s", need, able, len(s.nodes), free(most), where, s.keptFor(e, s.nodes))
}

func (s *Scheduler) lacksOn(e *entry, h *host) string {
	if h.Draining {
		return "it is being drained"
	}
	if why := e.shape.refusal(h.ID, s.at); why != "" {
		return why
	}
	for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
		if v := e.Labels[k]; h.Labels[k] != v {
			return fmt.Sprintf("its label %s is %q, not %q", k, h.Labels[k], v)
		}
	}
	f := e.shape.at(h, s.at)
	if len(f.on) < e.shape.want() && !e.Spread {
		text := fmt.Sprintf("%d of its devices fit", len(f.on))
		if e.Memory > 0 && e.Need.Kind == device.GPU {
			text += fmt.Sprintf(" (with %d MB each)", e.Memory>>20)
		}
		return text + ", it has " + h.Machine.String()
	}
	if !e.shape.roomy(f, h.memory) {
		return fmt.Sprintf("%d MB of memory are free, %d are needed", h.memory>>20, e.Memory>>20)
	}
	held, n := map[string]int{}, f.free
	for _, i := range f.on {
		switch c := h.devices[i]; {
		case c.mark.by == e && e.shape.free(h, i):
			n++
		case c.by != nil:
			held[c.by.ID]++
		case c.strange:
			held[h.Held[h.Machine.Devices[i].ID]]++
		}
	}
	var who []string
	for w, n := range held {
		who = append(who, fmt.Sprintf("%s has %d", w, n))
	}
	slices.Sort(who)
	text := fmt.Sprintf("%s of %d", free(n), len(f.on))
	if len(who) > maxNamed {
		who = append(who[:maxNamed], "others")
	}
	if len(who) > 0 {
		text += " (" + strings.Join(who, ", ") + ")"
	}
	return text + s.keptFor(e, []*host{h})
}

// keptFor says for whom devices are kept that an item could have otherwise.
func (s *Scheduler) keptFor(e *entry, hosts []*host) string {
	n := 0
	who := ""
	for _, h := range hosts {
		for _, i := range e.shape.at(h, s.at).on {
			if m := h.devices[i].mark; m.by != nil && m.by != e && e.shape.free(h, i) {
				n, who = n+1, m.by.ID
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d kept for %s", n, who)
}

func free(n int) string { return fmt.Sprintf("%d free", n) }
