package daemon

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/open-autoglm/autoglm/actors/daemon/api"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Every request of the control API has its call, but for files, and every call its
// request.
func TestEveryRequestHasItsCall(t *testing.T) {
	_, all := (&Daemon{}).handlers()
	var calls []string
	for _, r := range all {
		_, path, _ := strings.Cut(r.pattern, " ")
		if strings.HasPrefix(path, "/v1/") && !strings.HasPrefix(path, "/v1/files") && len(r.calls) == 0 {
			t.Errorf("%s has no call", r.pattern)
		}
		calls = append(calls, r.calls...)
	}
	var want []string
	for _, m := range api.Control_ServiceDesc.Methods {
		want = append(want, m.MethodName)
	}
	for _, s := range api.Control_ServiceDesc.Streams {
		want = append(want, s.StreamName)
	}
	slices.Sort(calls)
	slices.Sort(want)
	if !slices.Equal(calls, want) {
		t.Errorf("requests have the calls %q, control.proto has %q", calls, want)
	}
}

// fill sets everything that v holds to something.
func fill(v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 2, 3, 4, 5, 6, 789e6, time.UTC)))
		return
	case space.Config:
		v.Set(reflect.ValueOf(space.Config{space.Dim: space.Number(64), space.Tied: space.Word("true"), space.LR: space.Number(0.004)}))
		return
	case json.RawMessage:
		v.Set(reflect.ValueOf(json.RawMessage(`{"kind":"tick","at":1795824591571,"list":[1,"a",null]}`)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), e)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(7)
	case reflect.Uint64, reflect.Uint32:
		v.SetUint(9)
	case reflect.Float64:
		v.SetFloat(1.5)
	}
}

// All that the HTTP API says in JSON the messages hold, under the same names.
func TestMessagesHoldTheJSON(t *testing.T) {
	for _, tc := range []struct {
		v any
		m proto.Message
	}{
		{&Detail{}, &api.Job{}},
		{&Job{}, &api.Job{}},
		{&Submission{}, &api.SubmitRequest{}},
		{&Nodes{}, &api.NodesReply{}},
		{&Line{}, &api.Line{}},
		{&search.Order{}, &api.Order{}},
		{&struct {
			Files map[string]files.Ref `json:"files"`
		}{}, &api.FolderReply{}},
	} {
		for _, full := range []bool{false, true} {
			if full {
				fill(reflect.ValueOf(tc.v).Elem())
			}
			m, err := reply(tc.v, proto.Clone(tc.m))
			if err != nil {
				t.Errorf("%T: %v", tc.v, err)
				continue
			}
			want, err := json.Marshal(tc.v)
			if err != nil {
				t.Fatal(err)
			}
			got, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			SameJSON(t, got, want)
			if _, ok := tc.v.(*Submission); ok {
				// The other way.
				b, err := json.Marshal(plain(m.ProtoReflect()))
				if err != nil {
					t.Fatal(err)
				}
				var back Submission
				if err := decode(bytes.NewReader(b), &back); err != nil {
					t.Errorf("%v: %s", err, b)
				}
				again, err := json.Marshal(back)
				if err != nil {
					t.Fatal(err)
				}
				SameJSON(t, again, want)
			}
		}
	}
	var st journal.State
	if _, err := reply(map[string]any{"graph": []journal.Node{{Stage: "probe", Status: job.Waiting}}, "leaderboard": st.Leaderboard("")}, &api.Job{}); err != nil {
		t.Error(err)
	}
}

func FuzzSubmission(f *testing.F) {
	f.Add([]byte(`{"name": "x", "spec": {"seed": "18446744073709551615", "space": {"dim": "64"}, "steps": [{"name": "a", "run": ["b"], "resources": {"memory": "5"}}]}, "files": [{"ref": {"size": 3}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m api.SubmitRequest
		if protojson.Unmarshal(b, &m) != nil && proto.Unmarshal(b, &m) != nil {
			return
		}
		text, err := json.Marshal(plain(m.ProtoReflect()))
		if err != nil {
			return // a number that is none
		}
		s := Submission{Spec: job.Default()}
		if decode(bytes.NewReader(text), &s) == nil {
			s.Spec.Resolve()
			_ = s.Spec.Validate()
		}
	})
}
