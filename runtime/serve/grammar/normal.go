package grammar

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/google/jsonschema-go/jsonschema"
)

// combinators say what other schemas say, and are gone from a schema that is plain. What
// stays of not is an enum of values that are left out.
var combinators = []string{"$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"}

// Limits of what combinators unfold to.
const (
	maxAlternatives = 256
	maxUnfold       = 32
	maxWork         = 20_000 // schemas that were unfolded, denied or merged
)

func (o *object) has(k string) bool { _, ok := o.values[k]; return ok }

// of is an object of members.
func of(members ...any) *object {
	o := &object{values: map[string]any{}}
	for i := 0; i < len(members); i += 2 {
		o.set(members[i].(string), members[i+1])
	}
	return o
}

func (o *object) set(k string, v any) {
	if !o.has(k) {
		o.keys = append(o.keys, k)
	}
	o.values[k] = v
}

func (o *object) clone() *object {
	return &object{slices.Clone(o.keys), maps.Clone(o.values)}
}

func (o *object) drop(k string) {
	delete(o.values, k)
	o.keys = slices.DeleteFunc(o.keys, func(s string) bool { return s == k })
}

// plain tells whether a schema has no combinator, but for values that are left out.
func (o *object) plain() bool {
	return !slices.ContainsFunc(o.keys, func(k string) bool {
		return slices.Contains(combinators, k) && (k != "not" || leftOut(o.values[k]) == nil)
	})
}

// leftOut are the values of {"enum": […]}, or nil.
func leftOut(v any) []any {
	o, ok := v.(*object)
	if !ok || len(o.keys) != 1 || o.keys[0] != "enum" {
		return nil
	}
	list, _ := o.values["enum"].([]any)
	return list
}

// worked bounds what a schema may cost to unfold.
func (c *compiler) worked(n int, path string) error {
	if c.work += n; c.work > maxWork {
		return &Error{Path: path, Reason: "the schema combines too many others"}
	}
	return nil
}

// unfold are plain schemas of which one at least holds where the schema does, and the
// other way round: its disjunctive normal form.
func (c *compiler) unfold(v any, path string, depth int) ([]*object, error) {
	if err := c.worked(1, path); err != nil {
		return nil, err
	}
	if depth > maxUnfold {
		return nil, &Error{Path: path, Keyword: "$ref", Reason: "a schema that refers to itself beside other keywords is not supported"}
	}
	if b, ok := v.(bool); ok {
		if b {
			return []*object{of()}, nil
		}
		return nil, nil
	}
	o, ok := v.(*object)
	if !ok {
		return nil, &Error{Path: path, Reason: "this is no schema: neither an object nor a boolean"}
	}
	if err := c.known(o, path); err != nil {
		return nil, err
	}
	rest := of()
	for _, k := range o.keys {
		if !slices.Contains(combinators, k) && !slices.Contains(annotations, k) {
			rest.set(k, o.values[k])
		}
	}
	out := []*object{rest}
	var err error
	with := func(keyword string, more []*object) {
		if err == nil {
			out, err = c.cross(out, more, path, keyword)
		}
	}
	for _, k := range o.keys {
		var more []*object
		switch v := o.values[k]; k {
		case "$ref":
			var target any
			if ref, ok := v.(string); !ok {
				err = &Error{Path: path, Keyword: k, Reason: "must be a text"}
			} else if target, _, err = c.find(ref, path); err == nil {
				more, err = c.unfold(target, path, depth+1)
			}
		case "allOf":
			list, bad := schemas(v, path, k)
			err = bad
			for i, s := range list {
				if err == nil {
					more, err = c.unfold(s, fmt.Sprintf("%s/%s/%d", path, k, i), depth+1)
				}
				with(k, more)
			}
			if err != nil {
				return nil, err
			}
			continue
		case "anyOf", "oneOf":
			more, err = c.choices(k, v, path, depth)
		case "not":
			if leftOut(v) != nil {
				more = []*object{of("not", v)}
			} else {
				more, err = c.negateUnfold(v, path, depth)
			}
		case "if":
			more, err = c.conditional(o, path, depth)
		case "dependentRequired", "dependentSchemas":
			if more, err = c.dependent(k, v, path, depth); err != nil {
				return nil, err
			}
		default:
			continue
		}
		with(k, more)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func schemas(v any, path, keyword string) ([]any, error) {
	list, _ := v.([]any)
	if len(list) == 0 {
		return nil, &Error{Path: path, Keyword: keyword, Reason: "must be a list of schemas"}
	}
	return list, nil
}

// choices are those of anyOf, and of oneOf with the others negated where they may meet.
func (c *compiler) choices(keyword string, v any, path string, depth int) ([]*object, error) {
	list, err := schemas(v, path, keyword)
	if err != nil {
		return nil, err
	}
	var out []*object
	apart := keyword == "anyOf" || len(list) == 1 || c.disjoint(list)
	for i, s := range list {
		one, err := c.unfold(s, fmt.Sprintf("%s/%s/%d", path, keyword, i), depth+1)
		if err != nil {
			return nil, err
		}
		for j, other := range list {
			if apart || j == i {
				continue
			}
			without, err := c.negateUnfold(other, fmt.Sprintf("%s/%s/%d", path, keyword, j), depth)
			if err != nil {
				return nil, &Error{Path: path, Keyword: keyword, Reason: fmt.Sprintf("oneOf is supported where the types of its schemas differ, or their constants, or where what they say can be denied (%v); otherwise use anyOf", err)}
			}
			if one, err = c.cross(one, without, path, keyword); err != nil {
				return nil, err
			}
		}
		out = append(out, one...)
	}
	return out, nil
}

// conditional is if with then, or not if with else.
func (c *compiler) conditional(o *object, path string, depth int) ([]*object, error) {
	branch := func(cond []*object, keyword string) ([]*object, error) {
		v, ok := o.values[keyword]
		if !ok {
			return cond, nil
		}
		more, err := c.unfold(v, path+"/"+keyword, depth+1)
		if err != nil {
			return nil, err
		}
		return c.cross(cond, more, path, keyword)
	}
	if !o.has("then") && !o.has("else") {
		return []*object{of()}, nil
	}
	yes, err := c.unfold(o.values["if"], path+"/if", depth+1)
	if err != nil {
		return nil, err
	}
	no, err := c.negateUnfold(o.values["if"], path+"/if", depth)
	if err != nil {
		return nil, &Error{Path: path, Keyword: "if", Reason: fmt.Sprintf("what it says can't be denied, which else needs: %v", err)}
	}
	if yes, err = branch(yes, "then"); err != nil {
		return nil, err
	}
	if no, err = branch(no, "else"); err != nil {
		return nil, err
	}
	return append(yes, no...), nil
}

// noObject are all types but objects.
func noObject() *object { return of("type", []any{"array", "string", "number", "boolean", "null"}) }

// dependent says for each name: no object, or the name is absent, or what depends on it is so.
func (c *compiler) dependent(keyword string, v any, path string, depth int) ([]*object, error) {
	deps, ok := v.(*object)
	if !ok {
		return nil, &Error{Path: path, Keyword: keyword, Reason: "must be an object"}
	}
	out := []*object{of()}
	for _, name := range deps.keys {
		present := of("type", "object", "required", []any{name})
		then := []*object{present}
		if list, isList := deps.values[name].([]any); keyword == "dependentRequired" {
			if !isList {
				return nil, &Error{Path: path, Keyword: keyword, Reason: "must be an object of lists of names"}
			}
			present.set("required", append([]any{name}, list...))
		} else {
			more, err := c.unfold(deps.values[name], path+"/"+keyword+"/"+name, depth+1)
			if err != nil {
				return nil, err
			}
			if then, err = c.cross(then, more, path, keyword); err != nil {
				return nil, err
			}
		}
		choice := append([]*object{noObject(), of("type", "object", "properties", of(name, false))}, then...)
		var err error
		if out, err = c.cross(out, choice, path, keyword); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// negateUnfold unfolds what holds where a schema doesn't.
func (c *compiler) negateUnfold(v any, path string, depth int) ([]*object, error) {
	list, err := c.negate(v, path, depth+1)
	if err != nil {
		return nil, err
	}
	var out []*object
	for _, s := range list {
		more, err := c.unfold(s, path, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// negate are schemas of which one holds where v doesn't, and v doesn't where one does. Of
// some it gives fewer, never more: which item of a list is wrong is always the first.
func (c *compiler) negate(v any, path string, depth int) ([]any, error) {
	if err := c.worked(1, path); err != nil {
		return nil, err
	}
	if depth > maxUnfold {
		return nil, &Error{Path: path, Keyword: "not", Reason: "a schema that refers to itself can't be denied"}
	}
	if b, ok := v.(bool); ok {
		if b {
			return nil, nil
		}
		return []any{true}, nil
	}
	o, ok := v.(*object)
	if !ok {
		return nil, &Error{Path: path, Keyword: "not", Reason: "this is no schema: neither an object nor a boolean"}
	}
	if err := c.known(o, path); err != nil {
		return nil, err
	}
	var out []any
	add := func(s ...any) { out = append(out, s...) }
	for _, k := range o.keys {
		v := o.values[k]
		unsupported := &Error{Path: path, Keyword: "not", Reason: fmt.Sprintf(`"not" of %q is not supported`, k)}
		switch k {
		case "type":
			wanted, err := c.types(o, path, nil)
			if err != nil {
				return nil, err
			}
			var others []any
			for _, t := range []string{"object", "array", "string", "number", "boolean", "null"} {
				if !slices.Contains(wanted, t) && (t != "number" || !slices.Contains(wanted, "integer")) {
					others = append(others, t)
				}
			}
			if others != nil {
				add(of("type", others))
			}
		case "const":
			add(of("not", of("enum", []any{v})))
		case "enum":
			add(of("not", of("enum", v)))
		case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
			add(of("type", "number", map[string]string{"minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum", "exclusiveMinimum": "maximum", "exclusiveMaximum": "minimum"}[k], v))
		case "minLength", "minItems", "minProperties", "maxLength", "maxItems", "maxProperties":
			n, err := count(o, path, k, 0)
			if err != nil {
				return nil, err
			}
			kind := map[string]string{"Length": "string", "Items": "array", "Properties": "object"}[k[3:]]
			if k[:3] == "max" {
				add(of("type", kind, "min"+k[3:], json.Number(fmt.Sprint(n+1))))
			} else if n > 0 {
				add(of("type", kind, "max"+k[3:], json.Number(fmt.Sprint(n-1))))
			}
		case "required":
			list, ok := v.([]any)
			for _, name := range list {
				s, isText := name.(string)
				ok = ok && isText
				add(of("type", "object", "properties", of(s, false)))
			}
			if !ok {
				return nil, unsupported
			}
		case "properties":
			props, ok := v.(*object)
			if !ok {
				return nil, unsupported
			}
			for _, name := range props.keys {
				wrong, err := c.negate(props.values[name], path+"/properties/"+name, depth+1)
				if err != nil {
					return nil, err
				}
				for _, w := range wrong {
					add(of("type", "object", "required", []any{name}, "properties", of(name, w)))
				}
			}
		case "items":
			if o.has("prefixItems") {
				return nil, unsupported
			}
			wrong, err := c.negate(v, path+"/items", depth+1)
			if err != nil {
				return nil, err
			}
			for _, w := range wrong {
				add(of("type", "array", "minItems", json.Number("1"), "prefixItems", []any{w}))
			}
		case "$ref":
			ref, ok := v.(string)
			if !ok {
				return nil, unsupported
			}
			target, _, err := c.find(ref, path)
			if err != nil {
				return nil, err
			}
			wrong, err := c.negate(target, path, depth+1)
			if err != nil {
				return nil, err
			}
			add(wrong...)
		case "not":
			add(v)
		case "allOf":
			list, err := schemas(v, path, k)
			if err != nil {
				return nil, err
			}
			for _, s := range list {
				wrong, err := c.negate(s, path, depth+1)
				if err != nil {
					return nil, err
				}
				add(wrong...)
			}
		case "anyOf", "oneOf": // none of them holds
			list, err := schemas(v, path, k)
			if err != nil {
				return nil, err
			}
			all := of("allOf", []any{true})
			for _, s := range list {
				wrong, err := c.negate(s, path, depth+1)
				if err != nil {
					return nil, err
				}
				if len(wrong) == 0 {
					wrong = []any{false}
				}
				all.values["allOf"] = append(all.values["allOf"].([]any), of("anyOf", wrong))
			}
			add(all)
		default:
			if !slices.Contains(annotations, k) {
				return nil, unsupported
			}
		}
	}
	return out, nil
}

// cross merges each of the one with each of the other.
func (c *compiler) cross(a, b []*object, path, keyword string) ([]*object, error) {
	if len(a)*len(b) > maxAlternatives {
		return nil, &Error{Path: path, Keyword: keyword, Reason: fmt.Sprintf("unfolds to more than %d schemas", maxAlternatives)}
	}
	if err := c.worked(len(a)*len(b), path); err != nil {
		return nil, err
	}
	var out []*object
	for _, x := range a {
		for _, y := range b {
			m, ok, err := merge(x, y, path)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

// both is what two schemas say together.
func both(a, b any) any {
	switch {
	case a == true || a == b:
		return b
	case b == true:
		return a
	case a == false || b == false:
		return false
	}
	return of("allOf", []any{a, b})
}

// merge is one plain schema of two; ok is false where no value is valid against both.
func merge(a, b *object, path string) (m *object, ok bool, err error) {
	m = a.clone()
	mergeMembers(m, a, b)
	for _, k := range b.keys {
		v := b.values[k]
		was, there := a.values[k]
		switch {
		case k == "properties" || k == "patternProperties" || k == "additionalProperties" || k == "prefixItems" || k == "items":
		case k == "const" || k == "enum":
			// the value must be of both: kept as an enum of those that both name
			list, known := enumOf(b)
			if !known {
				return nil, false, &Error{Path: path, Keyword: k, Reason: "must be a list"}
			}
			if mine, has := enumOf(a); has {
				list = slices.DeleteFunc(slices.Clone(list), func(v any) bool { return !containsValue(mine, v) })
			}
			if len(list) == 0 {
				return nil, false, nil
			}
			m.drop("const")
			m.set("enum", list)
		case !there:
			m.set(k, v)
		case k == "type":
			t := commonTypes(was, v)
			if t == nil {
				return nil, false, nil
			}
			m.set(k, t)
		case k == "not":
			m.set(k, of("enum", slices.Concat(leftOut(was), leftOut(v))))
		case k == "required":
			x, isList := was.([]any)
			y, too := v.([]any)
			if !isList || !too {
				return nil, false, &Error{Path: path, Keyword: k, Reason: "must be a list of names"}
			}
			m.set(k, slices.Concat(x, y))
		case k == "propertyNames":
			m.set(k, both(was, v))
		case k == "uniqueItems":
			m.set(k, was == true || v == true)
		case slices.Contains([]string{"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}, k):
			m.set(k, further(was, v, 1))
		case slices.Contains([]string{"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}, k):
			m.set(k, further(was, v, -1))
		case text(was) != text(v):
			return nil, false, &Error{Path: path, Keyword: k, Reason: fmt.Sprintf("two of %q for one value are not supported", k)}
		}
	}
	return m, true, nil
}

func enumOf(o *object) ([]any, bool) {
	if v, ok := o.values["const"]; ok {
		return []any{v}, true
	}
	list, ok := o.values["enum"].([]any)
	return list, ok
}

// equal compares as JSON Schema does: numbers by value.
func equal(a, b any) bool {
	x, xNumber := a.(json.Number)
	y, yNumber := b.(json.Number)
	if xNumber && yNumber {
		f, err := x.Float64()
		g, too := y.Float64()
		return err == nil && too == nil && f == g
	}
	switch a := a.(type) {
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	case *object:
		b, ok := b.(*object)
		if !ok || len(a.keys) != len(b.keys) {
			return false
		}
		for _, k := range a.keys {
			if !b.has(k) || !equal(a.values[k], b.values[k]) {
				return false
			}
		}
		return true
	}
	return a == b
}

func containsValue(list []any, v any) bool {
	return slices.ContainsFunc(list, func(w any) bool { return equal(v, w) })
}

// further is the larger of two numbers, or the smaller where sign is negative; what is no
// number stays, and is refused later.
func further(a, b any, sign float64) any {
	x, _ := a.(json.Number)
	y, _ := b.(json.Number)
	f, err := x.Float64()
	g, too := y.Float64()
	if err != nil || too == nil && g*sign > f*sign {
		if err != nil {
			return a
		}
		return b
	}
	if too != nil {
		return b
	}
	return a
}

// commonTypes is the types of both, or nil.
func commonTypes(a, b any) any {
	list := func(v any) []string {
		var out []string
		switch v := v.(type) {
		case string:
			out = []string{v}
		case []any:
			for _, t := range v {
				s, _ := t.(string)
				out = append(out, s)
			}
		}
		return out
	}
	var out []any
	theirs := list(b)
	for _, t := range list(a) {
		switch {
		case slices.Contains(theirs, t):
			out = append(out, t)
		case t == "integer" && slices.Contains(theirs, "number"), t == "number" && slices.Contains(theirs, "integer"):
			out = append(out, "integer")
		}
	}
	if out == nil {
		return nil
	}
	return out
}

// mergeMembers merges what is said of members and items, each of which both may speak of.
func mergeMembers(m, a, b *object) {
	if a.has("prefixItems") || a.has("items") || b.has("prefixItems") || b.has("items") {
		x, _ := a.values["prefixItems"].([]any)
		y, _ := b.values["prefixItems"].([]any)
		at := func(o *object, list []any, i int) any {
			if i < len(list) {
				return list[i]
			}
			return orTrue(o, "items")
		}
		var prefix []any
		for i := range max(len(x), len(y)) {
			prefix = append(prefix, both(at(a, x, i), at(b, y, i)))
		}
		if prefix != nil {
			m.set("prefixItems", prefix)
		}
		m.set("items", both(orTrue(a, "items"), orTrue(b, "items")))
	}
	if !slices.ContainsFunc([]string{"properties", "patternProperties", "additionalProperties"}, b.has) {
		return
	}
	for _, k := range []string{"properties", "patternProperties"} {
		mine, _ := a.values[k].(*object)
		theirs, _ := b.values[k].(*object)
		if mine == nil && theirs == nil {
			continue
		}
		all := of()
		for _, o := range []*object{mine, theirs} {
			if o == nil {
				continue
			}
			for _, name := range o.keys {
				if !all.has(name) {
					all.set(name, both(memberOf(a, k, name), memberOf(b, k, name)))
				}
			}
		}
		m.set(k, all)
	}
	if a.has("additionalProperties") || b.has("additionalProperties") {
		m.set("additionalProperties", both(orTrue(a, "additionalProperties"), orTrue(b, "additionalProperties")))
	}
}

func orTrue(o *object, k string) any {
	if v, ok := o.values[k]; ok {
		return v
	}
	return true
}

// memberOf is what a schema says of a property, or of a pattern: its own word, else, where
// no pattern of its own speaks, that of all others.
func memberOf(o *object, keyword, name string) any {
	if list, ok := o.values[keyword].(*object); ok && list.has(name) {
		return list.values[name]
	}
	if patterns, ok := o.values["patternProperties"].(*object); ok && keyword == "properties" {
		for _, p := range patterns.keys {
			if matchesName(p, name) {
				return true // the merged schema has the pattern too
			}
		}
	}
	return orTrue(o, "additionalProperties")
}

// filter leaves the values that are valid against the rest of a schema, as another
// implementation judges.
func filter(list []any, o *object, path string) ([]any, error) {
	rest := o.clone()
	rest.drop("enum")
	rest.drop("const")
	if len(rest.keys) == 0 {
		return list, nil
	}
	var judge jsonschema.Schema
	if err := json.Unmarshal([]byte(text(rest)), &judge); err != nil {
		return nil, &Error{Path: path, Keyword: "enum", Reason: "what stands beside it is not supported: " + err.Error()}
	}
	resolved, err := judge.Resolve(nil)
	if err != nil {
		return nil, &Error{Path: path, Keyword: "enum", Reason: "what stands beside it is not supported: " + err.Error()}
	}
	return slices.DeleteFunc(slices.Clone(list), func(v any) bool {
		var value any
		return json.Unmarshal([]byte(text(v)), &value) != nil || resolved.Validate(value) != nil
	}), nil
}

// decimals is k where a number is 10 to the power of -k, and -1 otherwise.
func decimals(f float64) int {
	for k := 1; k <= 9; k++ {
		if f == math.Pow10(-k) {
			return k
		}
	}
	return -1
}
