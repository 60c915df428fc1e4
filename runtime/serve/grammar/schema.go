package grammar

import (
	"encoding/json"
	"errors"
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
	empty   bool // all is supported, and no value is valid
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
	work int              // see maxWork

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
		"object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties"},
		"array":  {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
		"string": {"minLength", "maxLength", "format", "pattern"},
		"number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
	}
	types = []string{"object", "array", "string", "number", "integer", "boolean", "null"}
)

// known refuses keywords that are not supported.
func (c *compiler) known(o *object, path string) error {
	for _, k := range o.keys {
		switch {
		case slices.Contains(annotations, k), k == "$id" && path == "", k == "type", k == "enum", k == "const", slices.Contains(combinators, k):
		case slices.ContainsFunc(types, func(t string) bool { return slices.Contains(assertions[t], k) }):
		default:
			return &Error{Path: path, Keyword: k, Reason: fmt.Sprintf("the keyword %q is not supported", k)}
		}
	}
	return nil
}

// schema makes what a schema allows.
func (c *compiler) schema(v any, path string, next int32) (int32, error) {
	if len(c.p.states) >= maxStates {
		return next, nil
	}
	switch b, ok := v.(bool); {
	case ok && b:
		return c.p.call(c.anything(), next), nil
	case ok:
		return 0, &Error{Path: path, Reason: "nothing is valid against false", empty: true}
	}
	o, ok := v.(*object)
	if !ok {
		return 0, &Error{Path: path, Reason: "this is no schema: neither an object nor a boolean"}
	}
	if err := c.known(o, path); err != nil {
		return 0, err
	}
	var given []string // what isn't an annotation
	for _, k := range o.keys {
		if !slices.Contains(annotations, k) && k != "$id" {
			given = append(given, k)
		}
	}
	switch {
	case len(given) == 1 && given[0] == "$ref": // by a rule, which may call itself
		ref, ok := o.values["$ref"].(string)
		if !ok {
			return 0, &Error{Path: path, Keyword: "$ref", Reason: "must be a text"}
		}
		r, err := c.resolve(ref, path)
		return c.p.call(r, next), err
	case len(given) == 1 && (given[0] == "anyOf" || given[0] == "oneOf"):
		list, err := schemas(o.values[given[0]], path, given[0])
		if err != nil {
			return 0, err
		}
		if given[0] == "anyOf" || len(list) == 1 || c.disjoint(list) {
			return c.anyOf(list, path+"/"+given[0], next)
		}
	}
	if o.plain() {
		return c.plainSchema(o, path, given, next)
	}
	alternatives, err := c.unfold(o, path, 0)
	if err != nil {
		return 0, err
	}
	var all []any
	for _, a := range alternatives {
		all = append(all, a)
	}
	if len(all) == 0 {
		return 0, &Error{Path: path, Reason: "no value is valid against this schema", empty: true}
	}
	at, err := c.alternatives(all, func(int) string { return path }, func(v any, path string) (int32, error) {
		a := v.(*object)
		return c.plainSchema(a, path, a.keys, next)
	})
	return at, err
}

// anyOf makes what one of several schemas allows, each a rule of its own.
func (c *compiler) anyOf(list []any, path string, next int32) (int32, error) {
	return c.alternatives(list, func(i int) string { return fmt.Sprintf("%s/%d", path, i) }, func(v any, path string) (int32, error) {
		r, err := c.part(v, path)
		return c.p.call(r, next), err
	})
}

// alternatives makes one of several, of which some may allow nothing, but not all.
func (c *compiler) alternatives(list []any, path func(int) string, make func(v any, path string) (int32, error)) (int32, error) {
	var all []int32
	var nothing error
	for i, v := range list {
		at, err := make(v, path(i))
		if isEmpty(err) {
			nothing = err
			continue
		}
		if err != nil {
			return 0, err
		}
		all = append(all, at)
	}
	if all == nil {
		return 0, nothing
	}
	return c.p.either(all...), nil
}

func isEmpty(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.empty
}

// plainSchema makes what a schema without combinators allows.
func (c *compiler) plainSchema(o *object, path string, given []string, next int32) (int32, error) {
	if o.has("enum") || o.has("const") {
		return c.values(o, path, next)
	}
	wanted, err := c.types(o, path, given)
	if err != nil {
		return 0, err
	}
	var kinds []any
	for _, t := range wanted {
		kinds = append(kinds, t)
	}
	without := leftOut(o.values["not"])
	return c.alternatives(kinds, func(int) string { return path }, func(t any, path string) (at int32, err error) {
		switch t {
		case "null":
			return c.literals([]any{nil}, without, path, next)
		case "boolean":
			return c.literals([]any{true, false}, without, path, next)
		case "string":
			at, err = c.text(o, path, next)
		case "number", "integer":
			at, err = c.number(o, path, t == "integer", next)
		case "array":
			at, err = c.array(o, path, next)
		case "object":
			at, err = c.object(o, path, next)
		}
		return at, err
	})
}

// literals makes those of some values that are not left out.
func (c *compiler) literals(list, without []any, path string, next int32) (int32, error) {
	var all []int32
	for _, v := range list {
		if !containsValue(without, v) {
			all = append(all, c.p.literal(text(v), next))
		}
	}
	if all == nil {
		return 0, &Error{Path: path, Keyword: "not", Reason: "leaves no value", empty: true}
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
				return nil, &Error{Path: path, Keyword: "type", Reason: fmt.Sprintf("%s is no type, or stands twice", text(v))}
			}
			out = append(out, s)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, &Error{Path: path, Keyword: "type", Reason: "must be one of " + strings.Join(types, ", ") + ", or a list of them"}
}

// values makes those of enum and const that are valid against what stands beside them.
func (c *compiler) values(o *object, path string, next int32) (int32, error) {
	list, ok := enumOf(o)
	keyword := "enum"
	if o.has("const") {
		keyword = "const"
	}
	if !ok {
		return 0, &Error{Path: path, Keyword: keyword, Reason: "must be a list"}
	}
	if o.has("type") {
		if _, err := c.types(o, path, nil); err != nil {
			return 0, err
		}
	}
	for _, k := range assertions["number"] { // the other implementation takes a wrong bound for none
		if v, ok := o.values[k]; ok {
			if _, isNumber := v.(json.Number); !isNumber {
				return 0, &Error{Path: path, Keyword: k, Reason: "must be a number"}
			}
		}
	}
	list, err := filter(list, o, path)
	if err != nil {
		return 0, err
	}
	if len(list) == 0 {
		return 0, &Error{Path: path, Keyword: keyword, Reason: "allows no value", empty: true}
	}
	return c.literals(list, nil, path, next)
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

// resolve is the rule of a schema that $ref points to.
func (c *compiler) resolve(ref, path string) (int32, error) {
	at, pointer, err := c.find(ref, path)
	if err != nil || pointer == "" {
		return 0, err
	}
	if r, ok := c.refs[pointer]; ok {
		return r, nil
	}
	r := c.rule()
	c.refs[pointer] = r
	return r, c.define(r, at, pointer)
}

// find is the schema that $ref points to, in this document, and its pointer.
func (c *compiler) find(ref, path string) (at any, pointer string, err error) {
	pointer, ok := strings.CutPrefix(ref, "#")
	if !ok || pointer != "" && pointer[0] != '/' {
		return nil, "", &Error{Path: path, Keyword: "$ref", Reason: fmt.Sprintf("%q is not supported: only pointers into the schema itself are, such as #/$defs/name", ref)}
	}
	at = c.root
	if pointer == "" {
		return at, "", nil
	}
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
			return nil, "", &Error{Path: path, Keyword: "$ref", Reason: fmt.Sprintf("%q points to nothing", ref)}
		}
		at = next
		if o, isObject := at.(*object); isObject && part != "properties" {
			if _, ok := o.values["$id"].(string); ok {
				return nil, "", &Error{Path: path, Keyword: "$ref", Reason: "a pointer past an $id is not supported"}
			}
		}
	}
	return at, pointer, nil
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
		return 0, &Error{Path: path, Keyword: keyword, Reason: fmt.Sprintf("%s is no number of things that is supported", text(v))}
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
		return 0, 0, &Error{Path: path, Keyword: high, Reason: fmt.Sprintf("is less than %s", low), empty: true}
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
	without := slices.DeleteFunc(slices.Clone(leftOut(o.values["not"])), func(v any) bool { _, isText := v.(string); return !isText })
	if len(without) > 0 {
		if least > 0 || most >= 0 || o.has("pattern") || o.has("format") {
			return 0, &Error{Path: path, Keyword: "not", Reason: `"not" of a text beside a length, a pattern or a format is not supported`}
		}
		var texts []string
		for _, v := range without {
			texts = append(texts, v.(string))
		}
		return c.p.literal(`"`, c.textBut(texts, next)), nil
	}
	if v, ok := o.values["pattern"]; ok {
		expr, isText := v.(string)
		_, format := o.values["format"]
		switch {
		case !isText:
			return 0, &Error{Path: path, Keyword: "pattern", Reason: "must be a text"}
		case least > 0 || most >= 0 || format:
			return 0, &Error{Path: path, Keyword: "pattern", Reason: `"pattern" beside a length or a format is not supported`}
		}
		at, err := c.pattern(expr, next)
		if err != nil {
			return 0, &Error{Path: path, Keyword: "pattern", Reason: err.Error()}
		}
		return at, nil
	}
	if v, ok := o.values["format"]; ok {
		f, _ := v.(string)
		at, ok := c.format(f, next)
		switch {
		case !ok:
			return 0, &Error{Path: path, Keyword: "format", Reason: fmt.Sprintf("%s is not supported; date, time, date-time and uuid are", text(v))}
		case least > 0 || most >= 0:
			return 0, &Error{Path: path, Keyword: "format", Reason: `"format" beside a length is not supported`}
		}
		return at, nil
	}
	if least == 0 && most < 0 {
		return c.p.call(c.quoted(), next), nil
	}
	char := c.char()
	return c.p.literal(`"`, c.p.times(least, most, c.p.literal(`"`, next), func(next int32) int32 { return c.p.call(char, next) })), nil
}

// textBut makes texts, after their opening quote, that are none of some: along their
// letters, which must be ASCII, and from one that none of them has, any.
func (c *compiler) textBut(texts []string, next int32) int32 {
	char := c.char()
	end := c.p.literal(`"`, next)
	rest := c.p.times(0, -1, end, func(next int32) int32 { return c.p.call(char, next) })
	var from func(texts []string) int32
	from = func(texts []string) int32 {
		if len(c.p.states) >= maxStates {
			return end
		}
		var all []int32
		byLetter := map[byte][]string{}
		over := false
		for _, s := range texts {
			if s == "" {
				over = true
			} else {
				byLetter[s[0]] = append(byLetter[s[0]], s[1:])
			}
		}
		if !over {
			all = append(all, end)
		}
		other := state{op: read, next: rest}
		for b := byte(0x20); b < 0x7f; b++ {
			switch more, taken := byLetter[b]; {
			case b == '"' || b == '\\':
			case taken:
				all = append(all, c.p.literal(string(b), from(more)))
			default:
				other.set.add(b, b)
			}
		}
		return c.p.either(append(all, c.p.state(other))...)
	}
	return from(texts)
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

// most is the largest whole number that may come.
const most = 999_999_999_999_999

// number makes a number between bounds: whole ones, and, where it need not be whole, all
// between two whole numbers within the bounds.
func (c *compiler) number(o *object, path string, integer bool, next int32) (int32, error) {
	low, high := -float64(most), float64(most) // whole numbers
	from, to := low, high                      // intervals lie within
	bounded := false
	step, places := int64(1), digits // of multipleOf
	for _, k := range assertions["number"] {
		v, ok := o.values[k]
		if !ok {
			continue
		}
		n, _ := v.(json.Number)
		f, err := n.Float64()
		if err != nil {
			return 0, &Error{Path: path, Keyword: k, Reason: "must be a number"}
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
		case "multipleOf":
			switch at := decimals(f); {
			case f >= 1 && f <= most && f == math.Trunc(f):
				step, integer = int64(f), integer || f > 0
			case at > 0:
				places = at
			default:
				return 0, &Error{Path: path, Keyword: k, Reason: fmt.Sprintf("%s is not supported; whole numbers, and 0.1, 0.01 and so on are", text(v))}
			}
		}
	}
	holes := leftOut(o.values["not"])
	holes = slices.DeleteFunc(slices.Clone(holes), func(v any) bool { _, isNumber := v.(json.Number); return !isNumber })
	if !bounded && !integer && len(holes) == 0 {
		return c.p.call(c.plain(), next), nil
	}
	var all []int32
	add := func(sign string, lo, hi float64, after int32) error {
		if lo > hi {
			return nil
		}
		if step == 1 {
			all = append(all, c.p.literal(sign, c.whole(int64(lo), int64(hi), after)))
			return nil
		}
		at, any, err := c.multiples(int64(lo), int64(hi), step, path, after)
		if any {
			all = append(all, c.p.literal(sign, at))
		}
		return err
	}
	// What is left out splits the range of whole numbers.
	var out []float64
	for _, v := range holes {
		if f, err := v.(json.Number).Float64(); err == nil && f == math.Trunc(f) {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	lo := low
	for _, f := range append(out, high+1) {
		hi := min(f-1, high)
		if err := errors.Join(add("", max(lo, 0), hi, next), add("-", max(-hi, 1), -lo, next)); err != nil {
			return 0, err
		}
		lo = max(lo, f+1)
	}
	if !integer && len(holes) == 0 {
		digit := func(next int32) int32 { return c.p.ranges(next, '0', '9') }
		fraction := c.p.literal(".", c.p.times(0, places-1, c.p.ranges(next, '1', '9'), digit))
		if err := errors.Join(add("", max(from, 0), to-1, fraction), add("-", max(-to, 0), -from-1, fraction)); err != nil {
			return 0, err
		}
	}
	if all == nil {
		return 0, &Error{Path: path, Keyword: "minimum", Reason: "no whole number is within the bounds", empty: true}
	}
	return c.p.either(all...), nil
}

// Limits of multipleOf: numbers that are listed, and remainders that are counted.
const (
	maxListed     = 1000
	maxRemainders = 500
)

// multiples makes the decimals of the multiples of a step from lo to hi, neither negative:
// those that are few one by one, all others by their remainder.
func (c *compiler) multiples(lo, hi, step int64, path string, next int32) (at int32, any bool, err error) {
	var all []int32
	list := func(lo, hi int64) bool {
		first := (lo + step - 1) / step * step
		if first <= hi && (hi-first)/step >= maxListed {
			return false
		}
		for n := first; n <= hi; n += step {
			all = append(all, c.p.literal(strconv.FormatInt(n, 10), next))
		}
		return true
	}
	if !list(lo, hi) {
		width, power := 1, int64(10)
		for power <= lo {
			width, power = width+1, power*10
		}
		if hi != most || step > maxRemainders || !list(lo, power-1) {
			return 0, false, &Error{Path: path, Keyword: "multipleOf", Reason: fmt.Sprintf("with more than %d multiples between the bounds, or of more than %d without, is not supported", maxListed, maxRemainders)}
		}
		all = append(all, c.remainders(width+1, step, next))
	}
	if all == nil {
		return 0, false, nil
	}
	return c.p.either(all...), true, nil
}

// remainders makes the multiples of a step of that many digits at least.
func (c *compiler) remainders(least int, step int64, next int32) int32 {
	layer := make([]int32, step) // by the remainder so far; -1 where nothing may follow
	for r := range layer {
		layer[r] = -1
	}
	layer[0] = next
	digit := func(r int64, from int) int32 {
		to := map[int32]*state{}
		var order []int32
		for d := from; d <= 9; d++ {
			at := layer[(r*10+int64(d))%step]
			if at < 0 {
				continue
			}
			if to[at] == nil {
				to[at] = &state{op: read, next: at}
				order = append(order, at)
			}
			to[at].set.add(byte('0'+d), byte('0'+d))
		}
		if order == nil {
			return -1
		}
		var all []int32
		for _, at := range order {
			all = append(all, c.p.state(*to[at]))
		}
		return c.p.either(all...)
	}
	var starts []int32
	for n := 1; n <= digits && len(c.p.states) < maxStates; n++ {
		if n >= least {
			if at := digit(0, 1); at >= 0 {
				starts = append(starts, at)
			}
		}
		before := make([]int32, step)
		for r := range before {
			before[r] = digit(int64(r), 0)
		}
		layer = before
	}
	return c.p.either(starts...)
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
		if at, done, err := c.unique(o, path, least, most, next); done || err != nil {
			return at, err
		}
	}
	var first []int32
	if v, ok := o.values["prefixItems"]; ok {
		list, ok := v.([]any)
		if !ok {
			return 0, &Error{Path: path, Keyword: "prefixItems", Reason: "must be a list of schemas"}
		}
		for i, s := range list {
			if s == false { // no more than so many
				if most < 0 || most > i {
					most = i
				}
				break
			}
			r, err := c.part(s, fmt.Sprintf("%s/prefixItems/%d", path, i))
			if isEmpty(err) {
				if most < 0 || most > i {
					most = i
				}
				break
			}
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
		item, err = c.part(v, path+"/items")
		switch {
		case isEmpty(err):
			if most < 0 || most > len(first) {
				most = len(first)
			}
		case err != nil:
			return 0, err
		}
	}
	if most >= 0 && most < least {
		return 0, &Error{Path: path, Keyword: "minItems", Reason: "is more than there may be", empty: true}
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
