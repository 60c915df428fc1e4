package device

import (
	"fmt"
	"slices"
	"strings"
)

// Request is a parsed hardware constraint.
type Request struct {
	Kind  Kind   `json:"kind"`
	Count int    `json:"count"` // 0 is as many as there are
	Model string `json:"model"` // lower case, part of the model's name; "" is any
}

func (r Request) String() string {
	switch {
	case r.Kind == Auto:
		return "auto"
	case r.Count == 0:
		return string(r.Kind) + "-any"
	case r.Model != "":
		return fmt.Sprintf("%s-%dx-%s", r.Kind, r.Count, r.Model)
	}
	return fmt.Sprintf("%s-%d", r.Kind, r.Count)
}

// Match picks the devices that meet the request, as a ring: neighbours, the last
// and the first among them, are as near as can be. It returns ErrUnmet and says
// what is missing when it can't. Auto takes all CPU cores: the engine that every
// build has computes there.
func (m Machine) Match(r Request) ([]Device, error) { return m.MatchFree(r, nil) }

// MatchFree is Match without the devices that others hold: the key is an ID, the
// value says who.
func (m Machine) MatchFree(r Request, held map[string]string) ([]Device, error) {
	kind := r.Kind
	if kind == Auto {
		kind = CPU
	}
	var free []Device
	var gone []string // why devices that would fit can't be had
	fit, busy := 0, 0
	for _, d := range m.Devices {
		// A GPU that is cut up is used by its slices alone.
		if d.Kind != kind || d.MIG == "on" || !strings.Contains(strings.ToLower(d.Model), r.Model) {
			continue
		}
		fit++
		switch who, taken := held[d.ID]; {
		case d.Sick != "":
			gone = append(gone, fmt.Sprintf("%s is sick (%s)", d.ID, d.Sick))
		case taken:
			busy++
			gone = append(gone, fmt.Sprintf("%s is leased by %s", d.ID, who))
		default:
			free = append(free, d)
		}
	}
	want := max(r.Count, 1)
	if len(free) < want {
		text := fmt.Sprintf("%s asks for %d %s", r, want, noun(kind, r.Model, want))
		if fit == 0 || fit < want && len(gone) == 0 {
			text += fmt.Sprintf(", this machine has %s", m)
		} else {
			text += fmt.Sprintf(", this machine has %s; %d fit%s, %d can be had: %s", m, fit, third(fit), len(free), strings.Join(gone, "; "))
		}
		if busy > 0 && len(free)+busy >= want {
			return nil, fmt.Errorf("%w: %s", ErrBusy, text)
		}
		return nil, fmt.Errorf("%w: %s", ErrUnmet, text)
	}
	n := r.Count
	if n == 0 {
		n = len(free)
	}
	if kind == CPU {
		out := spread(free)[:n]
		slices.SortFunc(out, byNumber)
		return out, nil
	}
	return m.ring(free, n), nil
}

func third(n int) string {
	if n == 1 {
		return "s"
	}
	return ""
}

func noun(k Kind, model string, n int) string {
	s := "CPU core" + plural(n)
	if k == GPU {
		s = "GPU" + plural(n)
	}
	if model != "" {
		s += " with " + model + " in its name"
	}
	return s
}

// maxSearched bounds the exhaustive search for a ring: 8 GPUs have 2520 rings,
// 10 have 181,440.
const maxSearched = 8

// ring picks n of the devices and orders them so that the worst edge, then the
// sum of the edges, is least; ties go to the first in order. Above maxSearched
// devices each step goes to the nearest one left, from the best start.
func (m Machine) ring(ds []Device, n int) []Device {
	if n == 1 {
		return ds[:1]
	}
	all := true
	for _, d := range ds {
		all = all && d.Switched
	}
	if all {
		return ds[:n]
	}
	edge := make([][]Level, len(ds))
	for i := range ds {
		edge[i] = make([]Level, len(ds))
		for j := range ds {
			if i != j {
				edge[i][j] = m.level(ds[i].ID, ds[j].ID)
			}
		}
	}
	s := ringSearch{edge: edge, n: n}
	for first := range ds {
		s.path, s.used = []int{first}, make([]bool, len(ds))
		s.used[first] = true
		if len(ds) <= maxSearched {
			s.extend(Level(-1<<20), 0)
		} else {
			s.nearest()
		}
	}
	out := make([]Device, n)
	for i, k := range s.best {
		out[i] = ds[k]
	}
	return out
}

type ringSearch struct {
	edge       [][]Level
	n          int
	path, best []int
	used       []bool
	worst, sum Level // of best
}

// better tells whether a path with these edges could still beat the best.
func (s *ringSearch) better(worst, sum Level) bool {
	return s.best == nil || worst < s.worst || worst == s.worst && sum < s.sum
}

func (s *ringSearch) extend(worst, sum Level) {
	last := s.path[len(s.path)-1]
	if len(s.path) == s.n {
		e := s.edge[last][s.path[0]]
		if worst, sum = max(worst, e), sum+e; s.better(worst, sum) {
			s.best, s.worst, s.sum = slices.Clone(s.path), worst, sum
		}
		return
	}
	if s.best != nil && worst > s.worst {
		return
	}
	// The first is the lowest of its ring: the others are the same ring, turned.
	for next := s.path[0] + 1; next < len(s.edge); next++ {
		if s.used[next] {
			continue
		}
		s.used[next], s.path = true, append(s.path, next)
		e := s.edge[last][next]
		s.extend(max(worst, e), sum+e)
		s.used[next], s.path = false, s.path[:len(s.path)-1]
	}
}

func (s *ringSearch) nearest() {
	worst, sum := Level(-1<<20), Level(0)
	for len(s.path) < s.n {
		last, pick := s.path[len(s.path)-1], -1
		for j := range s.edge {
			if !s.used[j] && (pick < 0 || s.edge[last][j] < s.edge[last][pick]) {
				pick = j
			}
		}
		worst, sum = max(worst, s.edge[last][pick]), sum+s.edge[last][pick]
		s.used[pick], s.path = true, append(s.path, pick)
	}
	e := s.edge[s.path[len(s.path)-1]][s.path[0]]
	if worst, sum = max(worst, e), sum+e; s.better(worst, sum) {
		s.best, s.worst, s.sum = slices.Clone(s.path), worst, sum
	}
}
