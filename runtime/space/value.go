package space

import (
	"encoding/json"
	"math"
	"sort"
	"strconv"
	"strings"
)

// Value is one choice: a number, or a word. Booleans are the words "true" and
// "false".
type Value struct {
	Word string  `msgpack:"w,omitempty"` // empty for a number
	Num  float64 `msgpack:"n,omitempty"`
}

// Number makes a numeric value.
func Number(x float64) Value { return Value{Num: x} }

// Word makes a value that is a name.
func Word(s string) Value { return Value{Word: s} }

// IsWord tells whether the value is a name.
func (v Value) IsWord() bool { return v.Word != "" }

func (v Value) String() string {
	if v.IsWord() {
		return v.Word
	}
	return strconv.FormatFloat(v.Num, 'g', -1, 64)
}

// MarshalJSON writes a number, a boolean or a string.
func (v Value) MarshalJSON() ([]byte, error) {
	switch v.Word {
	case "":
		return json.Marshal(v.Num)
	case "true", "false":
		return []byte(v.Word), nil
	}
	return json.Marshal(v.Word)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (v *Value) UnmarshalJSON(b []byte) error {
	switch s := string(b); {
	case s == "true" || s == "false":
		*v = Word(s)
		return nil
	case strings.HasPrefix(s, `"`):
		v.Num = 0
		return json.Unmarshal(b, &v.Word)
	}
	v.Word = ""
	return json.Unmarshal(b, &v.Num)
}

// Config is one choice for each active dimension.
type Config map[string]Value

// Float returns a number, or NaN when the dimension isn't there or is a word.
func (c Config) Float(name string) float64 {
	v, ok := c[name]
	if !ok || v.IsWord() {
		return math.NaN()
	}
	return v.Num
}

// Int returns a number rounded to an integer, 0 when it isn't there.
func (c Config) Int(name string) int {
	f := c.Float(name)
	if math.IsNaN(f) {
		return 0
	}
	return int(math.Round(f))
}

// Word returns the text of a value, "" when it isn't there.
func (c Config) Word(name string) string {
	v, ok := c[name]
	if !ok {
		return ""
	}
	return v.String()
}

// Clone returns a copy.
func (c Config) Clone() Config {
	d := make(Config, len(c))
	for k, v := range c {
		d[k] = v
	}
	return d
}

// Key is a canonical text: two configs are equal when their keys are.
func (c Config) Key() string {
	names := make([]string, 0, len(c))
	for n := range c {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(n)
		b.WriteByte('=')
		b.WriteString(c[n].String())
	}
	return b.String()
}
