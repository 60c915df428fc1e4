// Package fields reads files of fields strictly: YAML, or JSON with comments and trailing
// commas. Every error names the file, the line and the field.
//
//	var s Spec // its fields have json tags
//	lines, err := fields.Decode(b, "job.yaml", &s)
//	var e *fields.Error
//	if errors.As(err, &e) { … e.Line, e.Path … }
//	line := lines.Of("budget.wall_clock")
//
// A field's type may say more of itself: Short, Line and Range, all on the pointer.
package fields

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
	"gopkg.in/yaml.v3"
)

// Error is a mistake in a file.
type Error struct {
	File string
	Line int    // 0 when it is not known
	Path string // "budget.wall_clock"; "" is the whole file
	Msg  string
}

func (e *Error) Error() string {
	s := e.Msg
	if e.Path != "" {
		s = e.Path + ": " + s
	}
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, s)
	}
	return e.File + ": " + s
}

// Lines are the lines of a file's fields by their paths.
type Lines map[string]int

// Of is the line of a field, or of the nearest that it is part of; 0 is unknown.
func (l Lines) Of(path string) int {
	for ; path != ""; path = parent(path) {
		if n := l[path]; n > 0 {
			return n
		}
	}
	return 0
}

// Short is a struct that may be written as one value: of that one of its fields, by its
// name in Go.
type Short interface{ ShortFor() string }

// Line is a type that may be written as one line of text.
type Line interface{ SetLine(text string) }

// Range is the text of a range, of a value, or of a list, which is written categorical([…]).
type Range interface{ SetRange(text string) }

func parent(p string) string {
	if i := strings.LastIndexAny(p, ".["); i >= 0 {
		return p[:i]
	}
	return ""
}

// Decode reads a file's bytes over what v points to, a struct whose fields have json tags,
// and returns the line of each field that the file names; name stands in errors, which are
// of type *Error. YAML aliases, unknown fields, fields that stand twice, values of another
// kind and null are refused.
func Decode(b []byte, name string, v any) (Lines, error) {
	text := strings.TrimPrefix(string(b), "\ufeff")
	if t := strings.TrimSpace(stripComments(text)); strings.HasPrefix(t, "{") {
		// JSON: comments and trailing commas become spaces, so that lines stay.
		std, err := hujson.Standardize([]byte(text + "\n")) // a comment may end the file
		if err != nil {
			line := 0
			msg := err.Error()
			if i := strings.Index(msg, "line "); i >= 0 {
				fmt.Sscanf(msg[i:], "line %d", &line)
			}
			return nil, &Error{File: name, Line: line, Msg: "is not JSON: " + strings.TrimPrefix(msg, "hujson: ")}
		}
		text = strings.ReplaceAll(string(std), "\t", " ")
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		line := 0
		msg := strings.TrimPrefix(err.Error(), "yaml: ")
		if n, _ := fmt.Sscanf(msg, "line %d:", &line); n == 1 {
			msg = strings.TrimSpace(msg[strings.Index(msg, ":")+1:])
		}
		return nil, &Error{File: name, Line: line, Msg: "is neither YAML nor JSON: " + msg}
	}
	if len(doc.Content) == 0 {
		return nil, &Error{File: name, Msg: "is empty; a file without fields is written {}"}
	}
	d := decoder{file: name, lines: Lines{}}
	return d.lines, d.decode(doc.Content[0], reflect.ValueOf(v).Elem(), "")
}

// stripComments drops leading // and # comment lines to see what kind of file it is.
func stripComments(s string) string {
	for {
		s = strings.TrimSpace(s)
		switch {
		case strings.HasPrefix(s, "//"), strings.HasPrefix(s, "#"):
			i := strings.IndexByte(s, '\n')
			if i < 0 {
				return ""
			}
			s = s[i:]
		case strings.HasPrefix(s, "/*"):
			i := strings.Index(s, "*/")
			if i < 0 {
				return ""
			}
			s = s[i+2:]
		default:
			return s
		}
	}
}

// decoder fills typed values from YAML nodes and refuses whatever has no place.
type decoder struct {
	file  string
	lines Lines
	depth int
}

func (d *decoder) fail(n *yaml.Node, path, format string, a ...any) error {
	return &Error{File: d.file, Line: n.Line, Path: path, Msg: fmt.Sprintf(format, a...)}
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

func (d *decoder) decode(n *yaml.Node, v reflect.Value, path string) error {
	if d.depth++; d.depth > 100 {
		return d.fail(n, path, "is nested too deeply")
	}
	defer func() { d.depth-- }()
	if n.Kind == yaml.AliasNode {
		return d.fail(n, path, "is an alias; write the value out")
	}
	if path != "" {
		d.lines[path] = n.Line
	}
	if n.Tag == "!!null" {
		return d.fail(n, path, "has no value; leave it out for the default")
	}
	switch t := v.Addr().Interface().(type) {
	case Range:
		text, err := d.rangeOf(n, path)
		if err == nil {
			t.SetRange(text)
		}
		return err
	case Line:
		if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
			t.SetLine(n.Value)
			return nil
		}
	case Short:
		if n.Kind == yaml.ScalarNode {
			return d.decode(n, v.FieldByName(t.ShortFor()), path)
		}
	}
	if reflect.PointerTo(v.Type()).Implements(textType) {
		if n.Kind != yaml.ScalarNode {
			return d.fail(n, path, "must be a single value")
		}
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
			return d.fail(n, path, "%v", err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := d.decode(n, p.Elem(), path); err != nil {
			return err
		}
		v.Set(p)
		return nil
	case reflect.Struct:
		return d.object(n, v, path)
	case reflect.Map:
		return d.mapping(n, v, path)
	case reflect.Slice:
		return d.list(n, v, path)
	}
	if n.Kind != yaml.ScalarNode {
		return d.fail(n, path, "must be %s, is %s", kindName(v), nodeName(n))
	}
	switch v.Kind() {
	case reflect.String:
		if n.Tag != "!!str" {
			return d.fail(n, path, "must be text, is %s; put it in quotes if you mean the text", n.Value)
		}
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || n.Tag != "!!bool" {
			return d.fail(n, path, "must be true or false, is %q", n.Value)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		x, err := strconv.ParseInt(strings.ReplaceAll(n.Value, "_", ""), 10, v.Type().Bits())
		if err != nil || n.Tag == "!!str" {
			return d.fail(n, path, "must be a whole number, is %q", n.Value)
		}
		v.SetInt(x)
	case reflect.Float64:
		x, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || n.Tag == "!!str" {
			return d.fail(n, path, "must be a number, is %q", n.Value)
		}
		v.SetFloat(x)
	case reflect.Uint64:
		x, err := strconv.ParseUint(n.Value, 10, 64)
		if err != nil || n.Tag == "!!str" {
			return d.fail(n, path, "must be a whole number from 0 on, is %q", n.Value)
		}
		v.SetUint(x)
	default:
		return d.fail(n, path, "cannot be read")
	}
	return nil
}

func (d *decoder) object(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.MappingNode {
		return d.fail(n, path, "must be a set of fields, is %s", nodeName(n))
	}
	fields, names := map[string]int{}, []string{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = i
		names = append(names, name)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		p := join(path, k.Value)
		at, ok := fields[k.Value]
		if !ok {
			return d.fail(k, p, "unknown field%s", DidYouMean(k.Value, names))
		}
		if seen[k.Value] {
			return d.fail(k, p, "stands twice")
		}
		seen[k.Value] = true
		if err := d.decode(n.Content[i+1], v.Field(at), p); err != nil {
			return err
		}
		d.lines[p] = k.Line
	}
	return nil
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.MappingNode {
		return d.fail(n, path, "must be a set of names and values, is %s", nodeName(n))
	}
	m := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		p := join(path, k.Value)
		key := reflect.ValueOf(k.Value)
		if m.MapIndex(key).IsValid() {
			return d.fail(k, p, "stands twice")
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if err := d.decode(n.Content[i+1], e, p); err != nil {
			return err
		}
		m.SetMapIndex(key, e)
		d.lines[p] = k.Line
	}
	v.Set(m)
	return nil
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{n}, Line: n.Line} // one value stands for a list of one
	}
	if n.Kind != yaml.SequenceNode {
		return d.fail(n, path, "must be a list, is %s", nodeName(n))
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		if err := d.decode(c, out.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

// rangeOf turns a value or a list into the text of a range.
func (d *decoder) rangeOf(n *yaml.Node, path string) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		return n.Value, nil
	case yaml.SequenceNode:
		var parts []string
		for _, c := range n.Content {
			if c.Kind != yaml.ScalarNode {
				return "", d.fail(c, path, "a list here holds numbers or words")
			}
			parts = append(parts, c.Value)
		}
		return "categorical([" + strings.Join(parts, ", ") + "])", nil
	}
	return "", d.fail(n, path, `must be a range such as "log_uniform(1e-5, 1e-2)", a value or a list`)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func kindName(v reflect.Value) string {
	switch v.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	}
	return "a number"
}

func nodeName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a set of fields"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", n.Value)
}

// DidYouMean proposes the nearest of names, at most a third of its letters away, in words
// that may follow an error; "" where none is near.
func DidYouMean(s string, names []string) string {
	best, bestD := "", 1<<30
	for _, n := range names {
		if d := distance(strings.ToLower(s), n); d < bestD {
			best, bestD = n, d
		}
	}
	if best == "" || bestD > max(2, len(best)/3) {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range x {
		prev := row[0]
		row[0] = i + 1
		for j, q := range y {
			cost := 1
			if r == q {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(prev+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(y)]
}
