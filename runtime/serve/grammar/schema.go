package grammar

import (
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Schema is a compiled JSON Schema. It never changes; any goroutine may use it.
type Schema struct{ p program }

// Error is a schema that can't be compiled.
type Error struct {
	Path    string // where in the schema, as a JSON pointer
	Keyword string // "" where the reason is no keyword
	Reason  string
}

func (e *Error) Error() string {
	at := e.Path
	if e.Keyword != "" {
		at += "/" + e.Keyword
	}
	return fmt.Sprintf("schema #%s: %s", at, e.Reason)
}

// Compile compiles a JSON Schema: the keywords of draft 2020-12 that the package
// supports, and annotations, which change nothing.
func Compile(schema []byte) (*Schema, error) {
	v, err := parse(schema)
	if err != nil {
		return nil, &Error{Reason: err.Error()}
	}
	s := &Schema{}
	c := &compiler{p: &s.p, root: v, refs: map[string]int32{}}
	c.rule() // 0, the whole
	if err := c.define(0, v, ""); err != nil {
		return nil, err
	}
	switch {
	case len(s.p.states) >= maxStates:
		return nil, &Error{Reason: "the schema is too large: fewer or smaller counts make it smaller"}
	case s.p.leftRecursive():
		return nil, &Error{Keyword: "$ref", Reason: "a schema refers to itself and to nothing else"}
	}
	return s, nil
}

// compiler makes a program of a schema.
type compiler struct {
	p    *program
	root any
	refs map[string]int32 // rules of schemas by their pointer

	any, chr, str, num int32 // rules that all share; 0 is not made yet
}

func (c *compiler) rule() int32 {
	c.p.rules = append(c.p.rules, 0)
	return int32(len(c.p.rules) - 1)
}

// define makes a rule of a schema.
func (c *compiler) define(rule int32, schema any, path string) error {
	at, err := c.schema(schema, path, c.p.state(state{op: finish}))
	c.p.rules[rule] = at
	return err
}

// part is a rule of its own for a schema.
func (c *compiler) part(schema any, path string) (int32, error) {
	r := c.rule()
	return r, c.define(r, schema, path)
}

// shared makes a rule once.
func (c *compiler) shared(rule *int32, f func(end int32) int32) int32 {
	if *rule == 0 {
		*rule = c.rule()
		c.p.rules[*rule] = f(c.p.state(state{op: finish}))
	}
	return *rule
}

// Keywords that change nothing, and those that are supported.
var (
	annotations = []string{"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$defs", "definitions"}
	assertions  = map[string][]string{
		"object": {"properties", "required", "additionalProperties"},
		"array":  {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
		"string": {"minLength", "maxLength", "format", "pattern"},
		"number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
	}
	types = []string{"object", "array", "string", "number", "integer", "boolean", "null"}
)

// schema makes what a schema allows.
func (c *compiler) schema(v any, path string, next int32) (int32, error) {
	if len(c.p.states) >= maxStates {
		return next, nil
	}
	bad := func(keyword, format string, args ...any) (int32, error) {
		return 0, &Error{path, keyword, fmt.Sprintf(format, args...)}
	}
	switch b, ok := v.(bool); {
	case ok && b:
		return c.p.call(c.anything(), next), nil
	case ok:
		return bad("", "nothing is valid against false")
	}
	o, ok := v.(*object)
	if !ok {
		return bad("", "this is no schema: neither an object nor a boolean")
	}
	var given []string // assertions
	for _, k := range o.keys {
		switch {
		case slices.Contains(annotations, k) || k == "$id" && path == "":
		case k == "type", k == "enum", k == "const", k == "$ref", k == "anyOf", k == "oneOf", k == "allOf", slices.ContainsFunc(types, func(t string) bool { return slices.Contains(assertions[t], k) }):
			given = append(given, k)
		default:
			return bad(k, "the keyword %q is not supported", k)
		}
	}
	alone := func(keyword string, but ...string) error {
		for _, k := range given {
			if k != keyword && !slices.Contains(but, k) {
				return &Error{path, k, fmt.Sprintf("%q beside %q is not supported", k, keyword)}
			}
		}
		return nil
	}
	has := func(k string) bool { _, ok := o.values[k]; return ok }
	switch {
	case has("$ref"):
		if err := alone("$ref"); err != nil {
			return 0, err
		}
		ref, ok := o.values["$ref"].(string)
		if !ok {
			return bad("$ref", "must be a text")
		}
		r, err := c.resolve(ref, path)
		return c.p.call(r, next), err
	case has("enum"), has("const"):
		return c.values(o, path, next, alone)
	case has("anyOf"), has("oneOf"), has("allOf"):
		return c.combined(o, path, next, alone)
	}
	wanted, err := c.types(o, path, given)
	if err != nil {
		return 0, err
	}
	var all []int32
	for _, t := range wanted {
		var at int32
		switch t {
		case "null":
			at = c.p.literal("null", next)
		case "boolean":
			at = c.p.either(c.p.literal("true", next), c.p.literal("false", next))
		case "string":
			at, err = c.text(o, path, next)
		case "number", "integer":
			at, err = c.number(o, path, t == "integer", next)
		case "array":
			at, err = c.array(o, path, next)
		case "object":
			at, err = c.object(o, path, next)
		}
		if err != nil {
			return 0, err
		}
		all = append(all, at)
	}
	return c.p.either(all...), nil
}

// types are those that type names, or that the other keywords are about.
func (c *compiler) types(o *object, path string, given []string) ([]string, error) {
	switch t := o.values["type"].(type) {
	case nil:
		if _, ok := o.values["type"]; ok {
			break
		}
		var out []string
		for kind, keywords := range assertions {
			if slices.ContainsFunc(given, func(k string) bool { return slices.Contains(keywords, k) }) {
				out = append(out, kind)
			}
		}
		slices.Sort(out)
		if out == nil {
			return []string{"object", "array", "string", "number", "boolean", "null"}, nil
		}
		return out, nil
	case string:
		if slices.Contains(types, t) {
			return []string{t}, nil
		}
	case []any:
		var out []string
		for _, v := range t {
			s, _ := v.(string)
			if !slices.Contains(types, s) || slices.Contains(out, s) {
				return nil, &Error{path, "type", fmt.Sprintf("%s is no type, or stands twice", text(v))}
			}
			out = append(out, s)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, &Error{path, "type", "must be one of " + strings.Join(types, ", ") + ", or a list of them"}
}

// isType tells whether a value has a type; integers are numbers too.
func isType(v any, t string) bool {
	switch v := v.(type) {
	case nil:
		return t == "null"
	case bool:
		return t == "boolean"
	case string:
		return t == "string"
	case []any:
		return t == "array"
	case *object:
		return t == "object"
	case json.Number:
		f, err := v.Float64()
		return t == "number" || t == "integer" && err == nil && f == math.Trunc(f)
	}
	return false
}

// values makes those of enum and const.
func (c *compiler) values(o *object, path string, next int32, alone func(string, ...string) error) (int32, error) {
	keyword, list := "const", []any{o.values["const"]}
	if v, ok := o.values["enum"]; ok {
		keyword = "enum"
		if list, ok = v.([]any); !ok {
			return 0, &Error{path, keyword, "must be a list"}
		}
	}
	if err := alone(keyword, "type"); err != nil {
		return 0, err
	}
	if _, ok := o.values["type"]; ok {
		wanted, err := c.types(o, path, nil)
		if err != nil {
			return 0, err
		}
		list = slices.DeleteFunc(slices.Clone(list), func(v any) bool {
			return !slices.ContainsFunc(wanted, func(t string) bool { return isType(v, t) })
		})
	}
	if len(list) == 0 {
		return 0, &Error{path, keyword, "allows no value"}
	}
	var all []int32
	for _, v := range list {
		all = append(all, c.p.literal(text(v), next))
	}
	return c.p.either(all...), nil
}

// combined makes anyOf, and those oneOf and allOf that are the same.
func (c *compiler) combined(o *object, path string, next int32, alone func(string, ...string) error) (int32, error) {
	keyword := "anyOf"
	for _, k := range []string{"oneOf", "allOf"} {
		if _, ok := o.values[k]; ok {
			keyword = k
		}
	}
	if err := alone(keyword); err != nil {
		return 0, err
	}
	list, _ := o.values[keyword].([]any)
	if len(list) == 0 {
		return 0, &Error{path, keyword, "must be a list of schemas"}
	}
	switch {
	case keyword == "allOf" && len(list) > 1:
		return 0, &Error{path, keyword, "allOf of several schemas is not supported; write them as one"}
	case keyword == "oneOf" && len(list) > 1 && !c.disjoint(list):
		return 0, &Error{path, keyword, "oneOf is supported where the types of its schemas differ, or their constants; otherwise use anyOf"}
	}
	var all []int32
	for i, v := range list {
		r, err := c.part(v, fmt.Sprintf("%s/%s/%d", path, keyword, i))
		if err != nil {
			return 0, err
		}
		all = append(all, c.p.call(r, next))
	}
	return c.p.either(all...), nil
}

// disjoint tells whether no value is valid against two of the schemas, by their types
// or, where these are texts, by their constants.
func (c *compiler) disjoint(list []any) bool {
	seen := map[string]bool{}
	claim := func(s string) bool {
		was := seen[s]
		seen[s] = true
		return !was
	}
	for _, v := range list {
		o, ok := v.(*object)
		if !ok {
			return false
		}
		texts, isEnum := o.values["enum"].([]any)
		if v, ok := o.values["const"]; ok {
			texts, isEnum = []any{v}, true
		}
		if isEnum {
			for _, v := range texts {
				if s, ok := v.(string); !ok || seen["string"] || !claim("= "+s) {
					return false
				}
			}
			seen["some string"] = true
			continue
		}
		t, ok := o.values["type"].(string)
		if t == "integer" {
			t = "number"
		}
		if !ok || t == "string" && seen["some string"] || !claim(t) {
			return false
		}
	}
	return true
}

// resolve is the rule of a schema that $ref points to, in this document.
func (c *compiler) resolve(ref, path string) (int32, error) {
	pointer, ok := strings.CutPrefix(ref, "#")
	if !ok || pointer != "" && pointer[0] != '/' {
		return 0, &Error{path, "$ref", fmt.Sprintf("%q is not supported: only pointers into the schema itself are, such as #/$defs/name", ref)}
	}
	if pointer == "" {
		return 0, nil
	}
	if r, ok := c.refs[pointer]; ok {
		return r, nil
	}
	at := c.root
	for part := range strings.SplitSeq(pointer[1:], "/") {
		if s, err := url.PathUnescape(part); err == nil {
			part = s
		}
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		var next any
		ok := false
		switch v := at.(type) {
		case *object:
			next, ok = v.values[part]
		case []any:
			if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(v) {
				next, ok = v[i], true
			}
		}
		if !ok {
			return 0, &Error{path, "$ref", fmt.Sprintf("%q points to nothing", ref)}
		}
		at = next
		if o, isObject := at.(*object); isObject && part != "properties" {
			if _, ok := o.values["$id"].(string); ok {
				return 0, &Error{path, "$ref", "a pointer past an $id is not supported"}
			}
		}
	}
	r := c.rule()
	c.refs[pointer] = r
	return r, c.define(r, at, pointer)
}

// count reads a keyword that is a number of things; otherwise is what it is without.
func count(o *object, path, keyword string, otherwise int) (int, error) {
	v, ok := o.values[keyword]
	if !ok {
		return otherwise, nil
	}
	n, _ := v.(json.Number)
	f, err := n.Float64()
	if err != nil || f < 0 || f != math.Trunc(f) || f > maxStates {
		return 0, &Error{path, keyword, fmt.Sprintf("%s is no number of things that is supported", text(v))}
	}
	return int(f), nil
}

func between(o *object, path, low, high string) (least, most int, err error) {
	if least, err = count(o, path, low, 0); err != nil {
		return 0, 0, err
	}
	if most, err = count(o, path, high, -1); err != nil {
		return 0, 0, err
	}
	if most >= 0 && most < least {
		return 0, 0, &Error{path, high, fmt.Sprintf("is less than %s", low)}
	}
	return least, most, nil
}

// char is the rule of one character of a text, which may be escaped.
func (c *compiler) char() int32 {
	return c.shared(&c.chr, func(end int32) int32 {
		p := c.p
		tail := func(n int) int32 {
			at := end
			for range n {
				at = p.ranges(at, 0x80, 0xbf)
			}
			return at
		}
		hex := func(next int32) int32 { return p.ranges(next, '0', '9', 'a', 'f', 'A', 'F') }
		escape := p.either(
			p.ranges(end, '"', '"', '\\', '\\', '/', '/', 'b', 'b', 'f', 'f', 'n', 'n', 'r', 'r', 't', 't'),
			// \u of what is no half of a pair.
			p.literal("u", p.either(
				p.ranges(hex(hex(hex(end))), '0', '9', 'a', 'c', 'A', 'C', 'e', 'f', 'E', 'F'),
				p.ranges(p.ranges(hex(hex(end)), '0', '7'), 'd', 'd', 'D', 'D'),
			)),
		)
		return p.either(
			p.ranges(end, 0x20, '!', '#', '[', ']', 0x7e),
			p.ranges(tail(1), 0xc2, 0xdf),
			p.ranges(p.ranges(tail(1), 0xa0, 0xbf), 0xe0, 0xe0),
			p.ranges(tail(2), 0xe1, 0xec, 0xee, 0xef),
			p.ranges(p.ranges(tail(1), 0x80, 0x9f), 0xed, 0xed),
			p.ranges(p.ranges(tail(2), 0x90, 0xbf), 0xf0, 0xf0),
			p.ranges(tail(3), 0xf1, 0xf3),
			p.ranges(p.ranges(tail(2), 0x80, 0x8f), 0xf4, 0xf4),
			p.literal(`\`, escape),
		)
	})
}

// quoted is the rule of any text.
func (c *compiler) quoted() int32 {
	char := c.char()
	return c.shared(&c.str, func(end int32) int32 {
		return c.p.literal(`"`, c.p.times(0, -1, c.p.literal(`"`, end), func(next int32) int32 { return c.p.call(char, next) }))
	})
}

func (c *compiler) text(o *object, path string, next int32) (int32, error) {
	least, most, err := between(o, path, "minLength", "maxLength")
	if err != nil {
		return 0, err
	}
	if v, ok := o.values["pattern"]; ok {
		expr, isText := v.(string)
		_, format := o.values["format"]
		switch {
		case !isText:
			return 0, &Error{path, "pattern", "must be a text"}
		case least > 0 || most >= 0 || format:
			return 0, &Error{path, "pattern", `"pattern" beside a length or a format is not supported`}
		}
		at, err := c.pattern(expr, next)
		if err != nil {
			return 0, &Error{path, "pattern", err.Error()}
		}
		return at, nil
	}
	if v, ok := o.values["format"]; ok {
		f, _ := v.(string)
		at, ok := c.format(f, next)
		switch {
		case !ok:
			return 0, &Error{path, "format", fmt.Sprintf("%s is not supported; date, time, date-time and uuid are", text(v))}
		case least > 0 || most >= 0:
			return 0, &Error{path, "format", `"format" beside a length is not supported`}
		}
		return at, nil
	}
	if least == 0 && most < 0 {
		return c.p.call(c.quoted(), next), nil
	}
	char := c.char()
	return c.p.literal(`"`, c.p.times(least, most, c.p.literal(`"`, next), func(next int32) int32 { return c.p.call(char, next) })), nil
}

// format makes a text of a format; days go to 28, which every month has.
func (c *compiler) format(name string, next int32) (int32, bool) {
	p := c.p
	digit := func(next int32) int32 { return p.ranges(next, '0', '9') }
	date := func(next int32) int32 {
		day := p.either(p.literal("0", p.ranges(next, '1', '9')), p.literal("1", digit(next)), p.literal("2", p.ranges(next, '0', '8')))
		day = p.literal("-", day)
		month := p.either(p.literal("0", p.ranges(day, '1', '9')), p.literal("1", p.ranges(day, '0', '2')))
		return digit(digit(digit(digit(p.literal("-", month)))))
	}
	clock := func(next int32) int32 {
		sixty := func(next int32) int32 { return p.ranges(digit(next), '0', '5') }
		rest := p.literal(":", sixty(p.literal(":", sixty(p.literal("Z", next)))))
		return p.either(p.ranges(digit(rest), '0', '1'), p.literal("2", p.ranges(rest, '0', '3')))
	}
	end := p.literal(`"`, next)
	switch name {
	case "date":
		return p.literal(`"`, date(end)), true
	case "time":
		return p.literal(`"`, clock(end)), true
	case "date-time":
		return p.literal(`"`, date(p.literal("T", clock(end)))), true
	case "uuid":
		at := end
		for i, n := range []int{12, 4, 4, 4, 8} {
			if i > 0 {
				at = p.literal("-", at)
			}
			at = p.times(n, n, at, func(next int32) int32 { return p.ranges(next, '0', '9', 'a', 'f') })
		}
		return p.literal(`"`, at), true
	}
	return 0, false
}

// digits bounds numbers: what a float64 holds exactly.
const digits = 15

// plain is the rule of any number.
func (c *compiler) plain() int32 {
	return c.shared(&c.num, func(end int32) int32 {
		p := c.p
		digit := func(next int32) int32 { return p.ranges(next, '0', '9') }
		exponent := p.ranges(p.either(p.ranges(p.times(1, 2, end, digit), '+', '+', '-', '-'), p.times(1, 2, end, digit)), 'e', 'e', 'E', 'E')
		rest := p.either(exponent, end)
		rest = p.either(p.literal(".", p.times(1, digits, rest, digit)), rest)
		whole := p.either(p.literal("0", rest), p.ranges(p.times(0, digits-1, rest, digit), '1', '9'))
		return p.either(whole, p.literal("-", whole))
	})
}

// number makes a number between bounds: whole ones, and, where it need not be whole, all
// between two whole numbers within the bounds.
func (c *compiler) number(o *object, path string, integer bool, next int32) (int32, error) {
	const most = 999_999_999_999_999
	low, high := -float64(most), float64(most) // whole numbers
	from, to := low, high                      // intervals lie within
	bounded := false
	for _, k := range assertions["number"] {
		v, ok := o.values[k]
		if !ok {
			continue
		}
		n, _ := v.(json.Number)
		f, err := n.Float64()
		if err != nil {
			return 0, &Error{path, k, "must be a number"}
		}
		bounded = true
		switch k {
		case "minimum":
			low, from = max(low, math.Ceil(f)), max(from, math.Ceil(f))
		case "exclusiveMinimum":
			low, from = max(low, math.Floor(f)+1), max(from, math.Ceil(f))
		case "maximum":
			high, to = min(high, math.Floor(f)), min(to, math.Floor(f))
		case "exclusiveMaximum":
			high, to = min(high, math.Ceil(f)-1), min(to, math.Floor(f))
		}
	}
	if !bounded && !integer {
		return c.p.call(c.plain(), next), nil
	}
	var all []int32
	add := func(sign string, lo, hi float64, after int32) {
		if lo <= hi {
			all = append(all, c.p.literal(sign, c.whole(int64(lo), int64(hi), after)))
		}
	}
	add("", max(low, 0), high, next)
	add("-", max(-high, 1), -low, next)
	if !integer {
		digit := func(next int32) int32 { return c.p.ranges(next, '0', '9') }
		fraction := c.p.literal(".", c.p.times(0, digits-1, c.p.ranges(next, '1', '9'), digit))
		add("", max(from, 0), to-1, fraction)
		add("-", max(-to, 0), -from-1, fraction)
	}
	if all == nil {
		return 0, &Error{path, "minimum", "no whole number is within the bounds"}
	}
	return c.p.either(all...), nil
}

// whole makes the decimals of lo to hi, neither negative.
func (c *compiler) whole(lo, hi int64, next int32) int32 {
	var all []int32
	for from := lo; from <= hi; {
		to, power := int64(9), int64(10)
		for to < from {
			power *= 10
			to = power - 1
		}
		to = min(to, hi)
		all = append(all, c.same(strconv.FormatInt(from, 10), strconv.FormatInt(to, 10), next))
		from = to + 1
	}
	return c.p.either(all...)
}

// same makes the decimals of lo to hi, which have the same number of digits.
func (c *compiler) same(lo, hi string, next int32) int32 {
	p := c.p
	if len(lo) == 0 {
		return next
	}
	rest := len(lo) - 1
	if lo[0] == hi[0] {
		return p.literal(lo[:1], c.same(lo[1:], hi[1:], next))
	}
	from, to := lo[0], hi[0]
	var all []int32
	if strings.Trim(lo[1:], "0") != "" {
		all = append(all, p.literal(lo[:1], c.same(lo[1:], strings.Repeat("9", rest), next)))
		from++
	}
	if strings.Trim(hi[1:], "9") != "" {
		all = append(all, p.literal(hi[:1], c.same(strings.Repeat("0", rest), hi[1:], next)))
		to--
	}
	if from <= to {
		digit := func(next int32) int32 { return p.ranges(next, '0', '9') }
		all = append(all, p.ranges(p.times(rest, rest, next, digit), from, to))
	}
	return p.either(all...)
}

// spaced is a text after which a blank may stand.
func (c *compiler) spaced(s string, next int32) int32 {
	return c.p.literal(s, c.p.either(next, c.p.literal(" ", next)))
}

// array makes items with commas between them.
func (c *compiler) array(o *object, path string, next int32) (int32, error) {
	least, most, err := between(o, path, "minItems", "maxItems")
	if err != nil {
		return 0, err
	}
	if u, ok := o.values["uniqueItems"]; ok && u != false {
		return 0, &Error{path, "uniqueItems", `the keyword "uniqueItems" is not supported`}
	}
	var first []int32
	if v, ok := o.values["prefixItems"]; ok {
		list, ok := v.([]any)
		if !ok {
			return 0, &Error{path, "prefixItems", "must be a list of schemas"}
		}
		for i, s := range list {
			if s == false { // no more than so many
				if most < 0 || most > i {
					most = i
				}
				break
			}
			r, err := c.part(s, fmt.Sprintf("%s/prefixItems/%d", path, i))
			if err != nil {
				return 0, err
			}
			first = append(first, r)
		}
	}
	var item int32
	switch v, ok := o.values["items"]; {
	case v == false:
		if most < 0 || most > len(first) {
			most = len(first)
		}
	case !ok:
		item = c.anything()
	default:
		if item, err = c.part(v, path+"/items"); err != nil {
			return 0, err
		}
	}
	if most >= 0 && most < least {
		return 0, &Error{path, "minItems", "is more than there may be"}
	}
	rule := func(i int) int32 {
		if i < len(first) {
			return first[i]
		}
		return item
	}
	end := c.p.literal("]", next)
	at := end
	last := most
	if most < 0 { // from here on all are the same
		last = max(least, len(first))
		at = c.p.times(0, -1, end, func(next int32) int32 { return c.spaced(",", c.p.call(item, next)) })
		if last == 0 {
			return c.p.literal("[", c.p.either(end, c.p.call(item, at))), nil
		}
	}
	for i := last - 1; i >= 0 && len(c.p.states) < maxStates; i-- {
		after := at
		at = c.p.call(rule(i), after)
		if i > 0 {
			at = c.spaced(",", at)
		}
		if i >= least {
			at = c.p.either(at, end)
		}
	}
	return c.p.literal("[", at), nil
}

// object makes members in the order of properties, those that are not required maybe.
func (c *compiler) object(o *object, path string, next int32) (int32, error) {
	extra, closed := o.values["additionalProperties"]
	if !closed {
		extra = true
	}
	type member struct {
		name     string
		rule     int32
		required bool
	}
	var members []member
	add := func(name string, schema any, at string) error {
		r, err := c.part(schema, at)
		members = append(members, member{name: name, rule: r})
		return err
	}
	required := map[string]bool{}
	if v, ok := o.values["required"]; ok {
		list, ok := v.([]any)
		for _, name := range list {
			s, isText := name.(string)
			ok = ok && isText
			required[s] = true
		}
		if !ok {
			return 0, &Error{path, "required", "must be a list of names"}
		}
	}
	if v, ok := o.values["properties"]; ok {
		props, ok := v.(*object)
		if !ok {
			return 0, &Error{path, "properties", "must be an object of schemas"}
		}
		for _, name := range props.keys {
			if props.values[name] == false {
				if required[name] {
					return 0, &Error{path, "required", fmt.Sprintf("%q is required and never valid", name)}
				}
				continue
			}
			if err := add(name, props.values[name], path+"/properties/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name)); err != nil {
				return 0, err
			}
		}
	}
	if list, ok := o.values["required"].([]any); ok { // those that properties doesn't name
		for _, v := range list {
			name := v.(string)
			if slices.ContainsFunc(members, func(m member) bool { return m.name == name }) {
				continue
			}
			if extra == false {
				return 0, &Error{path, "required", fmt.Sprintf("%q is required, and additionalProperties forbids it", name)}
			}
			if err := add(name, extra, path+"/additionalProperties"); err != nil {
				return 0, err
			}
		}
	}
	for i := range members {
		members[i].required = required[members[i].name]
	}
	end := c.p.literal("}", next)
	if _, named := o.values["properties"]; !named && len(members) == 0 && extra != false { // any names
		value, err := c.part(extra, path+"/additionalProperties")
		if err != nil {
			return 0, err
		}
		name := c.quoted()
		one := func(next int32) int32 { return c.p.call(name, c.spaced(":", c.p.call(value, next))) }
		more := c.p.times(0, -1, end, func(next int32) int32 { return c.spaced(",", one(next)) })
		return c.p.literal("{", c.p.either(end, one(more))), nil
	}
	// What may follow where a member came before, and where none did.
	after, fresh := end, end
	for i := len(members) - 1; i >= 0; i-- {
		m := members[i]
		with := c.p.literal(text(m.name), c.spaced(":", c.p.call(m.rule, after)))
		comma := c.spaced(",", with)
		if m.required {
			after, fresh = comma, with
		} else {
			after, fresh = c.p.either(comma, after), c.p.either(with, fresh)
		}
	}
	return c.p.literal("{", fresh), nil
}

// anything is the rule of any JSON.
func (c *compiler) anything() int32 {
	if c.any == 0 {
		c.any = c.rule()
		// Refers to itself, so that the rule must be known before it is made.
		at, _ := c.schema(&object{}, "", c.p.state(state{op: finish})) // an empty schema has no keyword that could be wrong
		c.p.rules[c.any] = at
	}
	return c.any
}
