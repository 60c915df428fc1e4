package daemon

import (
	"encoding/json"
	"reflect"
	"strconv"
	"testing"
	"time"
)

// SameJSON holds what protojson wrote against encoding/json's: it writes numbers of 64
// bits as text, leaves out what is empty, and cuts times otherwise.
func SameJSON(t testing.TB, got, want []byte) {
	t.Helper()
	var g, w any
	for _, x := range []struct {
		b []byte
		v *any
	}{{got, &g}, {want, &w}} {
		if err := json.Unmarshal(x.b, x.v); err != nil {
			t.Fatalf("%v: %s", err, x.b)
		}
		*x.v = bare(*x.v)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("the JSON differs:\n got %s\nwant %s", got, want)
	}
}

func bare(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if e = bare(e); e != nil {
				out[k] = e
			}
		}
		if len(out) > 0 {
			return out
		}
		return nil
	case []any:
		var out []any
		for _, e := range v {
			out = append(out, bare(e))
		}
		if len(out) > 0 {
			return out
		}
		return nil
	case string:
		if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return at.UTC().Format(time.RFC3339Nano)
		}
		if n, err := strconv.ParseFloat(v, 64); err == nil {
			return n
		}
	}
	return v
}
