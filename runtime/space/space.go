package space

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Constraint is known before a trial: it returns nil when the config may be
// tried, else why not.
type Constraint func(Config) error

// Space is an ordered set of dimensions and the constraints over them. It is
// read-only after New and may be shared.
type Space struct {
	dims        []Dimension
	index       map[string]int
	constraints []Constraint
	parts       map[string]Dimension // to which dimensions are narrowed
}

// New checks the dimensions and their conditions; parents stand before their
// children.
func New(dims ...Dimension) (*Space, error) {
	s := &Space{dims: dims, index: map[string]int{}}
	for i, d := range dims {
		if d.Name == "" {
			return nil, fmt.Errorf("dimension %d has no name", i)
		}
		if _, dup := s.index[d.Name]; dup {
			return nil, fmt.Errorf("dimension %s stands twice", d.Name)
		}
		if d.Parent != "" {
			j, ok := s.index[d.Parent]
			if !ok {
				return nil, fmt.Errorf("%s depends on %s, which does not stand before it", d.Name, d.Parent)
			}
			if dims[j].Cells() == 0 {
				return nil, fmt.Errorf("%s depends on %s, which is a real; it can depend on a choice or a whole number", d.Name, d.Parent)
			}
		}
		s.index[d.Name] = i
	}
	return s, nil
}

// Constrain returns a space with further constraints.
func (s *Space) Constrain(c ...Constraint) *Space {
	t := *s
	t.constraints = append(append([]Constraint(nil), s.constraints...), c...)
	return &t
}

// Dimensions lists the dimensions in order. The caller must not change them.
func (s *Space) Dimensions() []Dimension { return s.dims }

// Dimension finds one by name.
func (s *Space) Dimension(name string) (Dimension, bool) {
	i, ok := s.index[name]
	if !ok {
		return Dimension{}, false
	}
	return s.dims[i], true
}

// Active tells whether the dimension exists given the values of c.
func (s *Space) Active(d Dimension, c Config) bool {
	if d.Parent == "" {
		return true
	}
	v, ok := c[d.Parent]
	return ok && d.under(v)
}

// Feasible reports the first constraint that c violates, or a value outside of what
// the space is narrowed to.
func (s *Space) Feasible(c Config) error {
	if err := s.outside(c); err != nil {
		return err
	}
	for _, f := range s.constraints {
		if err := f(c); err != nil {
			return err
		}
	}
	return nil
}

// Check reports a value outside its range, a missing or an inactive dimension,
// or a violated constraint.
func (s *Space) Check(c Config) error {
	for _, d := range s.dims {
		v, ok := c[d.Name]
		switch active := s.Active(d, c); {
		case active && !ok:
			return fmt.Errorf("%s is missing", d.Name)
		case !active && ok:
			parent := "not there"
			if v, has := c[d.Parent]; has {
				parent = v.String()
			}
			return fmt.Errorf("%s is given though %s is %s", d.Name, d.Parent, parent)
		case ok && !d.Has(v):
			return fmt.Errorf("%s is %s, outside %s", d.Name, v, d)
		}
	}
	for n := range c {
		if _, ok := s.index[n]; !ok {
			return fmt.Errorf("%s is not a dimension of the space", n)
		}
	}
	return s.Feasible(c)
}

// Repair fits c into the space: values of dimensions that became active are
// drawn, those that became inactive or left their range are dropped or redrawn. A
// number outside of what its dimension is narrowed to becomes the nearest inside.
func (s *Space) Repair(c Config, rng *rand.Rand) Config {
	r := Config{}
	for _, d := range s.dims {
		if !s.Active(d, r) {
			continue
		}
		p := s.Part(d)
		v, ok := c[d.Name]
		if ok {
			v, ok = p.within(d, v)
		}
		if !ok {
			v = p.Sample(rng)
		}
		r[d.Name] = v
	}
	return r
}

// Mutate changes n of the active dimensions named by only (nil is all) and
// repairs what depends on them. It returns a feasible config that differs from c
// where one is found, else a fresh sample.
func (s *Space) Mutate(c Config, n int, only func(string) bool, rng *rand.Rand) (Config, error) {
	for range tries {
		m := c.Clone()
		var live []Dimension
		for _, d := range s.dims {
			if _, ok := m[d.Name]; ok && s.Part(d).Kind != Fixed && (only == nil || only(d.Name)) {
				live = append(live, d)
			}
		}
		if len(live) == 0 {
			break
		}
		rng.Shuffle(len(live), func(i, j int) { live[i], live[j] = live[j], live[i] })
		for _, d := range live[:min(n, len(live))] {
			if p := s.Part(d); p.Has(m[d.Name]) {
				m[d.Name] = p.Mutate(m[d.Name], rng)
			} else {
				m[d.Name] = p.Sample(rng)
			}
		}
		m = s.Repair(m, rng)
		if s.Feasible(m) == nil && m.Key() != c.Key() {
			return m, nil
		}
	}
	return s.Sample(rng)
}

// Cross takes each active dimension from a or from b with even odds.
func (s *Space) Cross(a, b Config, rng *rand.Rand) (Config, error) {
	for range tries {
		m := Config{}
		for _, d := range s.dims {
			va, oka := a[d.Name]
			vb, okb := b[d.Name]
			switch {
			case oka && (!okb || rng.IntN(2) == 0):
				m[d.Name] = va
			case okb:
				m[d.Name] = vb
			}
		}
		m = s.Repair(m, rng)
		if s.Feasible(m) == nil {
			return m, nil
		}
	}
	return s.Sample(rng)
}

// Width is the length of an encoded config: for each dimension its coordinates,
// and for each conditional one a leading coordinate that is 1 when it is active.
func (s *Space) Width() int {
	n := 0
	for _, d := range s.dims {
		n += d.Width()
		if d.Parent != "" {
			n++
		}
	}
	return n
}

// Encode maps c to a vector in [0, 1]^Width: numbers to one coordinate
// (logarithms taken first where the range is logarithmic), names to one-hot.
func (s *Space) Encode(c Config) []float64 {
	x := make([]float64, 0, s.Width())
	for _, d := range s.dims {
		v, ok := c[d.Name]
		if d.Parent != "" {
			active := 0.0
			if ok {
				active = 1
			}
			x = append(x, active)
		}
		switch {
		case d.Kind == Fixed:
		case d.Kind == Categorical:
			i := -1
			if ok {
				i = d.Index(v)
			}
			for j := range d.Choices {
				if j == i {
					x = append(x, 1)
				} else {
					x = append(x, 0)
				}
			}
		case ok:
			x = append(x, d.Unit(v))
		default:
			x = append(x, 0)
		}
	}
	return x
}

// Decode maps a vector back: the largest coordinate of a one-hot group wins.
func (s *Space) Decode(x []float64) (Config, error) {
	if len(x) != s.Width() {
		return nil, fmt.Errorf("vector has %d coordinates, the space %d", len(x), s.Width())
	}
	c := Config{}
	for _, d := range s.dims {
		if d.Parent != "" {
			x = x[1:]
		}
		group := x[:d.Width()]
		x = x[d.Width():]
		if !s.Active(d, c) {
			continue
		}
		switch {
		case d.Kind == Fixed:
			c[d.Name] = d.Choices[0]
		case d.Kind == Categorical:
			best := 0
			for i, u := range group {
				if u > group[best] {
					best = i
				}
			}
			c[d.Name] = d.Choices[best]
		default:
			c[d.Name] = d.Value(group[0])
		}
	}
	return c, nil
}

// Nearest fits c into the space: a value outside its range becomes the nearest
// one inside, a name that isn't a choice the first choice, and what is missing
// the range's middle.
func (s *Space) Nearest(c Config) Config {
	r := Config{}
	for _, d := range s.dims {
		if !s.Active(d, r) {
			continue
		}
		v, ok := c[d.Name]
		p := s.Part(d)
		if ok && p.Has(v) {
			r[d.Name] = v
			continue
		}
		r[d.Name] = p.nearest(v, ok && !v.IsWord())
	}
	return r
}

// Point maps c to one coordinate for each dimension, by Dimension.Coordinate.
func (s *Space) Point(c Config) []float64 {
	p := make([]float64, len(s.dims))
	for i, d := range s.dims {
		p[i] = d.Coordinate(c)
	}
	return p
}

// Config is Point's inverse. Coordinates outside are moved inside; those of
// dimensions that are not there do not count.
func (s *Space) Config(p []float64) (Config, error) {
	if len(p) != len(s.dims) {
		return nil, fmt.Errorf("point has %d coordinates, the space %d dimensions", len(p), len(s.dims))
	}
	c := Config{}
	for i, d := range s.dims {
		switch {
		case !s.Active(d, c):
		case math.IsNaN(p[i]):
			return nil, fmt.Errorf("the point has no coordinate for %s", d.Name)
		case d.Numeric():
			c[d.Name] = d.Value(p[i])
		default:
			c[d.Name] = d.Choices[int(math.Round(min(max(p[i], 0), float64(len(d.Choices)-1))))]
		}
	}
	return c, nil
}
