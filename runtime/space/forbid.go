package space

import (
	"fmt"
	"slices"
	"strings"
)

// Forbidden is a combination of values that may not be tried: all of its terms hold.
type Forbidden struct {
	text  string
	terms []term
}

type term struct {
	name, op string
	value    Value
}

// operators, the longer ones first: they are looked for in this order.
var operators = []string{"<=", ">=", "!=", "=", "<", ">"}

// ParseForbidden reads terms with spaces between them, each a name, one of = != < <=
// > >=, and a value: "optimizer=muon dropout>0.2".
func ParseForbidden(text string) (Forbidden, error) {
	f := Forbidden{text: text}
	for _, word := range strings.Fields(text) {
		at := strings.IndexAny(word, "<>=!")
		if at <= 0 {
			return f, fmt.Errorf("%q is no term; write name=value, with one of %s between them and no spaces", word, strings.Join(operators, " "))
		}
		t := term{name: word[:at]}
		for _, op := range operators {
			if strings.HasPrefix(word[at:], op) {
				t.op = op
				break
			}
		}
		if t.op == "" {
			return f, fmt.Errorf("%q has no operator of %s", word, strings.Join(operators, " "))
		}
		var err error
		if t.value, err = parseValue(word[at+len(t.op):]); err != nil {
			return f, fmt.Errorf("%q: %w", word, err)
		}
		if t.value.IsWord() && strings.ContainsAny(t.op, "<>") {
			return f, fmt.Errorf("%q compares with a word; words have = and !=", word)
		}
		f.terms = append(f.terms, t)
	}
	if len(f.terms) == 0 {
		return f, fmt.Errorf("is empty; write terms such as optimizer=muon dropout>0.2")
	}
	return f, nil
}

func (f Forbidden) String() string { return f.text }

// Known reports the first term's name that is not among names.
func (f Forbidden) Known(names []string) error {
	for _, t := range f.terms {
		if !slices.Contains(names, t.name) {
			return fmt.Errorf("%s is no dimension; there are %s", t.name, strings.Join(names, ", "))
		}
	}
	return nil
}

// Matches tells whether c is such a combination. A term about a dimension that is not
// there does not hold.
func (f Forbidden) Matches(c Config) bool {
	return !slices.ContainsFunc(f.terms, func(t term) bool { return !t.holds(c) })
}

func (t term) holds(c Config) bool {
	v, ok := c[t.name]
	if !ok {
		return false
	}
	switch t.op {
	case "=":
		return v == t.value
	case "!=":
		return v != t.value
	}
	if v.IsWord() {
		return false
	}
	switch t.op {
	case "<":
		return v.Num < t.value.Num
	case "<=":
		return v.Num <= t.value.Num
	case ">":
		return v.Num > t.value.Num
	}
	return v.Num >= t.value.Num
}

// Forbid returns a space without the combinations that texts name, see
// ParseForbidden.
func (s *Space) Forbid(texts ...string) (*Space, error) {
	names := make([]string, len(s.dims))
	for i, d := range s.dims {
		names[i] = d.Name
	}
	var more []Constraint
	for _, text := range texts {
		f, err := ParseForbidden(text)
		if err == nil {
			err = f.Known(names)
		}
		if err != nil {
			return nil, fmt.Errorf("forbidden %q: %w", text, err)
		}
		more = append(more, func(c Config) error {
			if f.Matches(c) {
				return fmt.Errorf("%s is forbidden", f)
			}
			return nil
		})
	}
	return s.Constrain(more...), nil
}
