package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// object is a JSON object in the order in which it was written.
type object struct {
	keys   []string
	values map[string]any // nil, bool, json.Number, string, []any, *object
}

// maxDepth bounds how deep a schema nests.
const maxDepth = 64

func parse(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the schema")
	}
	return v, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("the schema nests deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	case json.Delim('{'):
		o := &object{values: map[string]any{}}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			key, ok := k.(string)
			if !ok {
				return nil, fmt.Errorf("%v is no name of a member", k)
			}
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			if _, ok := o.values[key]; ok {
				return nil, fmt.Errorf("the member %q is given twice", key)
			}
			o.keys = append(o.keys, key)
			o.values[key] = v
		}
		_, err = d.Token()
		return o, err
	}
	return t, nil
}

// text writes a value as JSON without blanks.
func text(v any) string {
	var b strings.Builder
	writeText(&b, v)
	return b.String()
}

func writeText(b *strings.Builder, v any) {
	switch v := v.(type) {
	case []any:
		b.WriteByte('[')
		for i, x := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writeText(b, x)
		}
		b.WriteByte(']')
	case *object:
		b.WriteByte('{')
		for i, k := range v.keys {
			if i > 0 {
				b.WriteByte(',')
			}
			writeText(b, k)
			b.WriteByte(':')
			writeText(b, v.values[k])
		}
		b.WriteByte('}')
	case json.Number:
		b.WriteString(v.String())
	case string:
		var s bytes.Buffer
		e := json.NewEncoder(&s)
		e.SetEscapeHTML(false)
		_ = e.Encode(v) // strings always can be
		b.WriteString(strings.TrimSuffix(s.String(), "\n"))
	case bool:
		fmt.Fprint(b, v)
	default:
		b.WriteString("null")
	}
}
