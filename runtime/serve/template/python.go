package template

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nikolalohinski/gonja/v2/exec"
)

// toJSON writes as Python's json.dumps(value, ensure_ascii=False) does; members are sorted.
func toJSON(_ *exec.Evaluator, in *exec.Value, params *exec.VarArgs) *exec.Value {
	if in.IsError() {
		return in
	}
	indent := 0
	if v := params.GetKeywordArgument("indent", nil); v.IsInteger() {
		indent = v.Integer()
	}
	var b strings.Builder
	if err := dump(&b, in.ToGoSimpleType(false), indent, 0); err != nil {
		return exec.AsValue(err)
	}
	return exec.AsSafeValue(b.String())
}

func dump(b *strings.Builder, v any, indent, depth int) error {
	list := func(open, end string, n int, item func(i int) error) error {
		b.WriteString(open)
		for i := range n {
			switch {
			case i > 0 && indent == 0:
				b.WriteString(", ")
			case i > 0:
				b.WriteString(",")
			}
			if indent > 0 {
				b.WriteString("\n" + strings.Repeat(" ", indent*(depth+1)))
			}
			if err := item(i); err != nil {
				return err
			}
		}
		if indent > 0 && n > 0 {
			b.WriteString("\n" + strings.Repeat(" ", indent*depth))
		}
		b.WriteString(end)
		return nil
	}
	switch v := v.(type) {
	case error:
		return v
	case []any:
		return list("[", "]", len(v), func(i int) error { return dump(b, v[i], indent, depth+1) })
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		return list("{", "}", len(keys), func(i int) error {
			if err := dump(b, keys[i], indent, depth+1); err != nil {
				return err
			}
			b.WriteString(": ")
			return dump(b, v[keys[i]], indent, depth+1)
		})
	default:
		var out bytes.Buffer
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return err
		}
		b.WriteString(strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029", "\\u007f", "\u007f").Replace(strings.TrimSuffix(out.String(), "\n")))
		return nil
	}
}

// strftime is Python's, of the parts that templates use.
func strftime(t time.Time, format string) (string, error) {
	layouts := map[byte]string{'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'B': "January", 'b': "Jan", 'A': "Monday", 'a': "Mon", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'j': "002", 'Z': "MST", 'z': "-0700"}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		layout, ok := layouts[format[i]]
		switch {
		case format[i] == '%':
			b.WriteByte('%')
		case !ok:
			return "", fmt.Errorf("strftime_now: %%%c is not known", format[i])
		default:
			b.WriteString(t.Format(layout))
		}
	}
	return b.String(), nil
}
