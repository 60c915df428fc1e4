package space

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
)

// ErrInfeasible means that no config within the constraints was found.
var ErrInfeasible = errors.New("no configuration satisfies the constraints")

const (
	tries     = 4096
	maxListed = 1 << 15 // configs that are looked at one by one
	sweeps    = 16      // starts of the search by repair
	quantiles = 16      // values of a real range that a repair looks at
	maxLooked = 2048    // of another range
)

// Sample draws a feasible config, every active dimension apart. Where draws alone
// find none it lists the space, or where that is too large repairs draws, dimension
// by dimension; the error then says which constraints clash.
func (s *Space) Sample(rng *rand.Rand) (Config, error) {
	for range tries {
		if c := s.draw(rng); s.Feasible(c) == nil {
			return c, nil
		}
	}
	feasible, whole := s.list()
	if len(feasible) > 0 {
		return feasible[rng.IntN(len(feasible))], nil
	}
	if !whole {
		for range sweeps {
			if c, ok := s.mend(s.draw(rng), rng); ok {
				return c, nil
			}
		}
	}
	return nil, fmt.Errorf("%w in %d draws: %s", ErrInfeasible, tries, s.clash(rng))
}

func (s *Space) draw(rng *rand.Rand) Config {
	c := Config{}
	for _, d := range s.dims {
		if s.Active(d, c) {
			c[d.Name] = s.Part(d).Sample(rng)
		}
	}
	return c
}

// list gives the feasible ones of all configs; false when there are reals or too many.
func (s *Space) list() (feasible []Config, whole bool) {
	n := 1.0
	for _, d := range s.dims {
		cells := s.Part(d).Cells()
		if n *= cells; cells == 0 || n > 1e9 {
			return nil, false
		}
	}
	seen := 0
	var from func(i int, c Config) bool
	from = func(i int, c Config) bool {
		if i == len(s.dims) {
			seen++
			if s.Feasible(c) == nil {
				feasible = append(feasible, c.Clone())
			}
			return seen < maxListed
		}
		if !s.Active(s.dims[i], c) {
			return from(i+1, c)
		}
		d := s.Part(s.dims[i])
		defer delete(c, d.Name)
		for k := range int(d.Cells()) {
			c[d.Name] = d.cell(float64(k))
			if !from(i+1, c) {
				return false
			}
		}
		return true
	}
	if !from(0, Config{}) {
		return nil, false
	}
	return feasible, true
}

// violated is how many constraints c breaks.
func (s *Space) violated(c Config) int {
	n := 0
	for _, f := range s.constraints {
		if f(c) != nil {
			n++
		}
	}
	return n
}

// mend goes through the dimensions in a random order and gives each the value under
// which the fewest constraints are broken, equally good ones by chance, until none is
// or a round brings nothing.
func (s *Space) mend(c Config, rng *rand.Rand) (Config, bool) {
	broken := s.violated(c)
	for idle := 0; broken > 0 && idle < 3; {
		before := broken
		for _, i := range rng.Perm(len(s.dims)) {
			d := s.Part(s.dims[i])
			if _, ok := c[d.Name]; !ok || d.Kind == Fixed {
				continue
			}
			var best []Config
			for _, v := range d.some(rng) {
				m := c.Clone()
				m[d.Name] = v
				m = s.Repair(m, rng)
				n := s.violated(m)
				if n < broken {
					broken, best = n, nil
				}
				if n == broken {
					best = append(best, m)
				}
			}
			if len(best) > 0 {
				c = best[rng.IntN(len(best))]
			}
			if broken == 0 {
				return c, true
			}
		}
		if idle++; broken < before {
			idle = 0
		}
	}
	return c, broken == 0
}

// some are the dimension's values, or a sample of them where they are many.
func (d Dimension) some(rng *rand.Rand) []Value {
	n := d.Cells()
	if n == 0 || n > maxLooked {
		out := make([]Value, quantiles)
		for i := range out {
			out[i] = d.Value((float64(i) + rng.Float64()) / quantiles)
		}
		return out
	}
	out := make([]Value, int(n))
	for i := range out {
		out[i] = d.cell(float64(i))
	}
	return out
}

// clash says how many of tries draws each constraint refuses, and which of them, or
// which two together, leave the least.
func (s *Space) clash(rng *rand.Rand) string {
	n := len(s.constraints)
	refused, last := make([]int, n), make([]error, n)
	both := make([][]int, n) // draws that two constraints let pass
	for i := range both {
		both[i] = make([]int, n)
	}
	for range tries {
		c := s.draw(rng)
		passed := make([]bool, n)
		for i, f := range s.constraints {
			err := f(c)
			if passed[i] = err == nil; !passed[i] {
				refused[i]++
				last[i] = err
			}
		}
		for i := range n {
			for j := range i {
				if passed[i] && passed[j] {
					both[i][j]++
				}
			}
		}
	}
	var parts []string
	for i, err := range last {
		if err == nil {
			continue
		}
		if refused[i] == tries {
			return fmt.Sprintf("all are refused by one constraint: %v", err)
		}
		parts = append(parts, fmt.Sprintf("%d are refused because of %q", refused[i], err))
	}
	a, b := -1, -1
	for i := range n {
		for j := range i {
			if last[i] != nil && last[j] != nil && (a < 0 || both[i][j] < both[a][b]) {
				a, b = i, j
			}
		}
	}
	text := strings.Join(parts, ", ")
	if a >= 0 {
		text += fmt.Sprintf("; %d pass both %q and %q: loosen one of these", both[a][b], last[b], last[a])
	}
	return text
}
