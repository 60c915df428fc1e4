package space

import (
	"fmt"
	"maps"
	"strings"
)

// Part is the part of the dimension that a text names: what Parse reads, or LOW..HIGH,
// which keeps the dimension's own scale and steps. Its values are values of the
// dimension.
func (d Dimension) Part(expr string) (Dimension, error) {
	p, err := d.part(expr)
	if err != nil {
		return p, err
	}
	if !d.contains(p) {
		return Dimension{}, fmt.Errorf("%s: %s is not within %s", d.Name, expr, d)
	}
	p.Parent, p.On, p.AtLeast = d.Parent, d.On, d.AtLeast
	return p, nil
}

func (d Dimension) part(expr string) (Dimension, error) {
	low, high, between := strings.Cut(expr, "..")
	if !between {
		return Parse(d.Name, expr)
	}
	fail := func(format string, a ...any) (Dimension, error) {
		return Dimension{}, fmt.Errorf("%s: %q: %s", d.Name, expr, fmt.Sprintf(format, a...))
	}
	a, err := parseValue(strings.TrimSpace(low))
	if err != nil {
		return fail("%v", err)
	}
	b, err := parseValue(strings.TrimSpace(high))
	switch {
	case err != nil:
		return fail("%v", err)
	case a.IsWord() || b.IsWord():
		return fail("LOW..HIGH takes numbers; name words as a list: [adamw, muon]")
	case a.Num > b.Num:
		return fail("the lowest value %s is above the highest %s", a, b)
	}
	p := d
	p.HasPrior = d.HasPrior && d.Prior >= a.Num && d.Prior <= b.Num
	switch {
	case len(d.Choices) > 0:
		p.Choices = nil
		for _, v := range d.Choices {
			if !v.IsWord() && v.Num >= a.Num && v.Num <= b.Num {
				p.Choices = append(p.Choices, v)
			}
		}
		if len(p.Choices) == 0 {
			return fail("no value of %s lies there", d)
		}
	case a.Num < d.Low || b.Num > d.High:
		return fail("is not within %s", d)
	case d.Cells() > 0:
		// The first and the last of the dimension's steps that lie there.
		p.Low, p.High = d.nearest(a, true).Num, d.nearest(b, true).Num
		step := max(d.Step, 1)
		if d.Kind == Uniform {
			step = d.Step
		}
		if p.Low < a.Num {
			p.Low = d.nearest(Number(p.Low+step), true).Num
		}
		if p.High > b.Num {
			p.High = d.nearest(Number(p.High-step), true).Num
		}
		if p.Low < a.Num || p.Low > p.High {
			return fail("no value of %s lies there", d)
		}
	default:
		p.Low, p.High = a.Num, b.Num
	}
	switch {
	case len(p.Choices) == 1:
		p.Kind = Fixed
	case len(p.Choices) == 0 && p.Low == p.High:
		p = Dimension{Name: d.Name, Kind: Fixed, Choices: []Value{Number(p.Low)}}
	}
	return p, nil
}

// contains tells whether all values of p are values of d.
func (d Dimension) contains(p Dimension) bool {
	n := p.Cells()
	switch {
	case n == 0: // reals
		return d.Cells() == 0 && p.Low >= d.Low && p.High <= d.High
	case len(p.Choices) == 0 && d.Cells() == 0 || p.Kind == LogInt && d.Kind == LogInt:
		return p.Low >= d.Low && p.High <= d.High
	case n > maxSteps:
		return false
	}
	for k := range int(n) {
		if !d.Has(p.cell(float64(k))) {
			return false
		}
	}
	return true
}

// Narrow returns a space of the same dimensions in which only values of the parts are
// drawn and feasible: see Dimension.Part. A part takes the place of an earlier one of
// its dimension. Coordinates stay what they were, and so do those of values outside.
func (s *Space) Narrow(parts ...Dimension) *Space {
	t := *s
	t.parts = maps.Clone(s.parts)
	if t.parts == nil {
		t.parts = map[string]Dimension{}
	}
	for _, p := range parts {
		t.parts[p.Name] = p
	}
	return &t
}

// Narrowed tells whether any dimension is.
func (s *Space) Narrowed() bool { return len(s.parts) > 0 }

// Part is what may be drawn of a dimension: itself, where it was not narrowed.
func (s *Space) Part(d Dimension) Dimension {
	if p, ok := s.parts[d.Name]; ok {
		return p
	}
	return d
}

// outside reports the first value that is in no part.
func (s *Space) outside(c Config) error {
	if len(s.parts) == 0 {
		return nil
	}
	for _, d := range s.dims {
		if v, ok := c[d.Name]; ok && !s.Part(d).Has(v) {
			return fmt.Errorf("%s is %s, and the search was narrowed to %s", d.Name, v, s.Part(d))
		}
	}
	return nil
}

// within is the value of p, a part of d, that stands for v; false where none does.
func (p Dimension) within(d Dimension, v Value) (Value, bool) {
	switch {
	case p.Has(v):
		return v, true
	case d.Has(v) && d.Numeric():
		return p.nearest(v, !v.IsWord()), true
	}
	return Value{}, false
}
