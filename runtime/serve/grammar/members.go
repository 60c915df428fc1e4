package grammar

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// maxUnique bounds how many values uniqueItems chooses from.
const maxUnique = 8

// unique makes a list without repetition of a few values; done is false where no list may
// be long enough to repeat anything.
func (c *compiler) unique(o *object, path string, least, most int, next int32) (at int32, done bool, err error) {
	if most == 0 || most == 1 {
		return 0, false, nil
	}
	refused := &Error{Path: path, Keyword: "uniqueItems", Reason: fmt.Sprintf("uniqueItems is supported where items is an enum of up to %d values, or maxItems is 1", maxUnique)}
	items, ok := o.values["items"].(*object)
	if !ok || o.has("prefixItems") {
		return 0, false, refused
	}
	alternatives, err := c.unfold(items, path+"/items", 0)
	if err != nil {
		return 0, false, err
	}
	var values []any
	for _, a := range alternatives {
		list, ok := enumOf(a)
		if t := a.values["type"]; !ok && (t == "boolean" || t == "null") {
			list, ok = map[any][]any{"boolean": {true, false}, "null": {nil}}[t], true
		}
		if !ok {
			return 0, false, refused
		}
		if list, err = filter(list, a, path+"/items"); err != nil {
			return 0, false, err
		}
		for _, v := range list {
			if !containsValue(values, v) {
				values = append(values, v)
			}
		}
	}
	if len(values) > maxUnique {
		return 0, false, refused
	}
	if most < 0 || most > len(values) {
		most = len(values)
	}
	if least > most {
		return 0, false, &Error{Path: path, Keyword: "minItems", Reason: "is more than there are different values", empty: true}
	}
	end := c.p.literal("]", next)
	known := map[int]int32{} // what follows, by the values that came
	var after func(came, n int) int32
	after = func(came, n int) int32 {
		if at, ok := known[came]; ok {
			return at
		}
		var all []int32
		if n >= least {
			all = append(all, end)
		}
		for i, v := range values {
			if n == most || came>>i&1 == 1 || len(c.p.states) >= maxStates {
				continue
			}
			one := c.p.literal(text(v), after(came|1<<i, n+1))
			if n > 0 {
				one = c.spaced(",", one)
			}
			all = append(all, one)
		}
		if all == nil {
			all = []int32{end}
		}
		known[came] = c.p.either(all...)
		return known[came]
	}
	return c.p.literal("[", after(0, 0)), true, nil
}

// matchesName tells whether a pattern is found in a name.
func matchesName(pattern, name string) bool {
	re, err := regexp.Compile(pattern)
	return err == nil && re.MatchString(name)
}

type member struct {
	name     string
	rule     int32
	required bool
}

// objectSchema is what a schema says of an object's members.
type objectSchema struct {
	*object
	path     string
	extra    any // of names that nothing else speaks of
	names    any // propertyNames
	required []string
	patterns []string
	least    int
	most     int // -1 is any number
}

func (c *compiler) readObject(o *object, path string) (*objectSchema, error) {
	s := &objectSchema{object: o, path: path, extra: orTrue(o, "additionalProperties"), names: orTrue(o, "propertyNames")}
	var err error
	if s.least, s.most, err = between(o, path, "minProperties", "maxProperties"); err != nil {
		return nil, err
	}
	if v, ok := o.values["required"]; ok {
		list, ok := v.([]any)
		for _, name := range list {
			text, isText := name.(string)
			ok = ok && isText
			if !slices.Contains(s.required, text) {
				s.required = append(s.required, text)
			}
		}
		if !ok {
			return nil, &Error{Path: path, Keyword: "required", Reason: "must be a list of names"}
		}
	}
	if v, ok := o.values["patternProperties"]; ok {
		patterns, ok := v.(*object)
		if !ok {
			return nil, &Error{Path: path, Keyword: "patternProperties", Reason: "must be an object of schemas"}
		}
		for _, p := range patterns.keys {
			if _, err := regexp.Compile(p); err != nil {
				return nil, &Error{Path: path, Keyword: "patternProperties", Reason: err.Error()}
			}
		}
		s.patterns = patterns.keys
	}
	return s, nil
}

// of is the schema of a member of that name: what properties and the patterns that match
// say together, else additionalProperties.
func (s *objectSchema) of(name string) (schema any, at string) {
	schema, at = true, s.path+"/additionalProperties"
	spoken := false
	if props, ok := s.values["properties"].(*object); ok && props.has(name) {
		schema, at, spoken = props.values[name], s.path+"/properties/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), true
	}
	for _, p := range s.patterns {
		if matchesName(p, name) {
			schema, spoken = both(schema, s.values["patternProperties"].(*object).values[p]), true
		}
	}
	if !spoken {
		schema = s.extra
	}
	return schema, at
}

// object makes members in the order of properties, those that are not required maybe.
func (c *compiler) object(o *object, path string, next int32) (int32, error) {
	s, err := c.readObject(o, path)
	if err != nil {
		return 0, err
	}
	var names []string
	if v, ok := o.values["properties"]; ok {
		props, ok := v.(*object)
		if !ok {
			return 0, &Error{Path: path, Keyword: "properties", Reason: "must be an object of schemas"}
		}
		names = slices.Clone(props.keys)
	}
	for _, name := range s.required {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if !o.has("properties") && len(names) == 0 {
		return c.anyMembers(s, next)
	}
	var members []member
	for _, name := range names {
		required := slices.Contains(s.required, name)
		schema, at := s.of(name)
		if ok, err := validName(s, name); err != nil {
			return 0, err
		} else if !ok {
			schema = false
		}
		r, err := c.part(schema, at)
		switch {
		case isEmpty(err) && required:
			return 0, &Error{Path: path, Keyword: "required", Reason: fmt.Sprintf("%q is required and never valid", name), empty: true}
		case isEmpty(err):
			continue
		case err != nil:
			return 0, err
		}
		members = append(members, member{name, r, required})
	}
	return c.named(s, members, next)
}

// validName tells whether propertyNames allows a name.
func validName(s *objectSchema, name string) (bool, error) {
	switch n := s.names.(type) {
	case bool:
		return n, nil
	case *object:
		left, err := filter([]any{name}, n, s.path+"/propertyNames")
		if err != nil {
			return false, &Error{Path: s.path, Keyword: "propertyNames", Reason: err.Error()}
		}
		if list, ok := enumOf(n); ok && !containsValue(list, name) {
			return false, nil
		}
		return len(left) > 0, nil
	}
	return false, &Error{Path: s.path, Keyword: "propertyNames", Reason: "must be a schema"}
}

// named makes the members in their order, between least and most of them.
func (c *compiler) named(s *objectSchema, members []member, next int32) (int32, error) {
	most := s.most
	if most < 0 || most > len(members) {
		most = len(members)
	}
	end := c.p.literal("}", next)
	const none = -1
	// What may follow where n members came before, or that many and more where that is all
	// that counts; none where nothing may.
	counts := most + 1
	if most == len(members) {
		counts = max(s.least, 1) + 1
	}
	after := make([]int32, counts)
	for n := range after {
		after[n] = none
		if n >= s.least {
			after[n] = end
		}
	}
	for i := len(members) - 1; i >= 0 && len(c.p.states) < maxStates; i-- {
		m := members[i]
		before := make([]int32, counts)
		for n := range before {
			to := n + 1
			if most == len(members) {
				to = min(to, counts-1)
			}
			with := int32(none)
			if to < counts && after[to] != none {
				with = c.p.literal(text(m.name), c.spaced(":", c.p.call(m.rule, after[to])))
				if n > 0 {
					with = c.spaced(",", with)
				}
			}
			switch {
			case m.required || after[n] == none:
				before[n] = with
			case with == none:
				before[n] = after[n]
			default:
				before[n] = c.p.either(with, after[n])
			}
		}
		after = before
	}
	if after[0] == none {
		return 0, &Error{Path: s.path, Keyword: "minProperties", Reason: "no object has as many members", empty: true}
	}
	return c.p.literal("{", after[0]), nil
}

// anyMembers makes members of any names, where no schema names one.
func (c *compiler) anyMembers(s *objectSchema, next int32) (int32, error) {
	end := c.p.literal("}", next)
	value, keyword := s.extra, "additionalProperties"
	switch {
	case len(s.patterns) > 1:
		return 0, &Error{Path: s.path, Keyword: "patternProperties", Reason: "several patterns without properties are not supported: a name may match two"}
	case len(s.patterns) == 1 && s.names != true:
		return 0, &Error{Path: s.path, Keyword: "patternProperties", Reason: `"patternProperties" beside "propertyNames" is not supported`}
	case len(s.patterns) == 1:
		value, keyword = s.values["patternProperties"].(*object).values[s.patterns[0]], "patternProperties"
	}
	rule, err := c.part(value, s.path+"/"+keyword)
	empty := isEmpty(err) || s.most == 0
	if err != nil && !empty {
		return 0, err
	}
	name := c.quoted()
	switch names := s.names.(type) {
	case bool:
		empty = empty || !names
	case *object:
		if name, err = c.part(both(of("type", "string"), names), s.path+"/propertyNames"); isEmpty(err) {
			empty = true
		} else if err != nil {
			return 0, err
		}
	default:
		return 0, &Error{Path: s.path, Keyword: "propertyNames", Reason: "must be a schema"}
	}
	switch {
	case empty && s.least > 0:
		return 0, &Error{Path: s.path, Keyword: "minProperties", Reason: "no object has as many members", empty: true}
	case empty:
		return c.p.literal("{", end), nil
	case s.least > 1:
		return 0, &Error{Path: s.path, Keyword: "minProperties", Reason: "of more than 1 is supported where properties names the members: others might have the same name"}
	}
	var bad error
	one := func(next int32) int32 {
		next = c.spaced(":", c.p.call(rule, next))
		if len(s.patterns) == 0 {
			return c.p.call(name, next)
		}
		at, err := c.pattern(s.patterns[0], next)
		if err != nil {
			bad = &Error{Path: s.path, Keyword: "patternProperties", Reason: err.Error()}
			return next
		}
		return at
	}
	at := one(c.p.times(0, max(s.most-1, -1), end, func(next int32) int32 { return c.spaced(",", one(next)) }))
	if s.least == 0 {
		at = c.p.either(end, at)
	}
	return c.p.literal("{", at), bad
}
