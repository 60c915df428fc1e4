package rest

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The document says what is served: every path, and every field of a request.
func TestOpenAPI(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas map[string]struct{ Properties map[string]json.RawMessage }
		}
	}
	if err := json.Unmarshal(openapiDoc, &doc); err != nil {
		t.Fatal(err)
	}
	s := &Server{}
	var served, said []string
	for _, p := range slices.Concat(slices.Collect(maps.Keys(s.open())), slices.Collect(maps.Keys(s.guarded())), slices.Collect(maps.Keys(s.v2()))) {
		served = append(served, strings.ReplaceAll(p, "{$}", ""))
	}
	for path, methods := range doc.Paths {
		for m := range methods {
			said = append(said, strings.ToUpper(m)+" "+path)
		}
	}
	slices.Sort(served)
	slices.Sort(said)
	if !slices.Equal(served, said) {
		t.Errorf("served, and in openapi.json:\n%v\n%v", served, said)
	}
	for name, v := range map[string]any{"Completion": completionRequest{}, "Chat": chatRequest{}, "Embedding": embeddingRequest{}, "Infer": v2Request{}, "Generate": v2GenerateRequest{}} {
		want := fields(reflect.TypeOf(v))
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(doc.Components.Schemas[name].Properties)); !slices.Equal(got, want) {
			t.Errorf("%s: fields are %v, in openapi.json %v", name, want, got)
		}
	}
}

func fields(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			out = append(out, fields(f.Type)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}
