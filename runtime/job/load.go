package job

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
	"gopkg.in/yaml.v3"
)

const maxSpecBytes = 4 << 20

// Load reads a job file over the defaults: YAML, or JSON with comments and
// trailing commas. An error is a *FieldError with the file's name, the line and
// the field's path, or wraps the one from the file system.
func Load(path string) (Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return Spec{}, fmt.Errorf("job file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSpecBytes+1))
	if err != nil {
		return Spec{}, fmt.Errorf("job file: %w", err)
	}
	return Parse(b, path)
}

// Parse is Load for bytes; name stands in errors.
func Parse(b []byte, name string) (Spec, error) {
	s := Default()
	if len(b) > maxSpecBytes {
		return s, &FieldError{File: name, Msg: fmt.Sprintf("is larger than %d bytes; is this a job file?", maxSpecBytes)}
	}
	lines := map[string]int{}
	if err := parse(b, name, &s, lines); err != nil {
		return s, err
	}
	if err := s.Validate(); err != nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			fe.File = name
			for p := fe.Path; fe.Line == 0 && p != ""; p = parent(p) {
				fe.Line = lines[p]
			}
		}
		return s, err
	}
	// Files of the job stand relative to its folder.
	for _, list := range [][]string{s.Data.Files, s.Data.Valid, s.Data.Plugin, s.WarmStart} {
		for i, p := range list {
			if _, made := s.StepFile(p); !made && !filepath.IsAbs(p) {
				list[i] = filepath.Join(filepath.Dir(name), p)
			}
		}
	}
	for i := range s.Steps {
		s.Steps[i].bring(filepath.Dir(name))
	}
	return s, nil
}

func parent(p string) string {
	if i := strings.LastIndexAny(p, ".["); i >= 0 {
		return p[:i]
	}
	return ""
}

func parse(b []byte, name string, s *Spec, lines map[string]int) error {
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
			return &FieldError{File: name, Line: line, Msg: "is not JSON: " + strings.TrimPrefix(msg, "hujson: ")}
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
		return &FieldError{File: name, Line: line, Msg: "is neither YAML nor JSON: " + msg}
	}
	if len(doc.Content) == 0 {
		return &FieldError{File: name, Msg: "is empty; an empty job is written {}"}
	}
	d := decoder{file: name, lines: lines}
	return d.decode(doc.Content[0], reflect.ValueOf(s).Elem(), "")
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
	lines map[string]int
	depth int
}

func (d *decoder) fail(n *yaml.Node, path, format string, a ...any) error {
	return &FieldError{File: d.file, Line: n.Line, Path: path, Msg: fmt.Sprintf(format, a...)}
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
	if v.Type() == reflect.TypeFor[Expr]() {
		e, err := d.expr(n, path)
		if err == nil {
			v.SetString(e)
		}
		return err
	}
	if v.Type() == reflect.TypeFor[Command]() && n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		v.Set(reflect.ValueOf(Line(n.Value)))
		return nil
	}
	if v.Type() == reflect.TypeFor[Budget]() && n.Kind == yaml.ScalarNode {
		return d.decode(n, v.FieldByName("WallClock"), path) // budget: 15m
	}
	if v.Type() == reflect.TypeFor[Compress]() && n.Kind == yaml.ScalarNode {
		return d.decode(n, v.FieldByName("Weights"), path) // compress: int8
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
		if path == "" {
			return d.fail(n, path, "a job is a set of fields, this is %s", nodeName(n))
		}
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
			return d.fail(k, p, "unknown field%s", didYouMean(k.Value, names))
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

// expr turns a value or a list into the text of a range.
func (d *decoder) expr(n *yaml.Node, path string) (string, error) {
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

// didYouMean proposes the nearest name, at most a third of its letters away.
func didYouMean(s string, names []string) string {
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
