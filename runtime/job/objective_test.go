package job

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/runtime/train"
)

func TestObjectives(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"{}", ""},
		{"objective: bits_per_byte", ""}, // as older job files have it
		{"objectives: bits_per_byte", ""},
		{"objectives: [bits_per_byte, latency, memory, size, energy, task_error]\nserves_on: cpu-2", ""},
		{"constraints: {max_latency: 20ms, max_size_mb: 4.5, max_serving_memory_mb: 12}", ""},
		{"objective: latency", `f:1: objective: "latency" is not bits_per_byte`},
		{"objectives: [bits_per_byte, latncy]", `f:1: objectives[1]: "latncy" is not one of bits_per_byte, latency, memory, size, energy, task_error (did you mean "latency"?)`},
		{"objectives: [latency, bits_per_byte]", `f:1: objectives[0]: "latency" can't come first: that is the main score, bits_per_byte`},
		{"objectives:\n- bits_per_byte\n- size\n- size", `f:4: objectives[2]: "size" stands twice`},
		{"objectives: [bits_per_byte, size]\nsearch_strategy: cma-es", `f:2: search_strategy: cma-es looks at one objective, and there are 2`},
		{"objectives: [bits_per_byte, size]\nscheduler: curve", `f:2: scheduler: curve stops trials by bits_per_byte alone`},
		{"constraints: {max_latency: 20 ms}", `f:1: constraints.max_latency: "20 ms" is no duration`},
		{"constraints: {max_latency: -1s}", `f:1: constraints.max_latency: "-1s" is negative`},
		{"constraints: {max_size_mb: -1}", `f:1: constraints.max_size_mb: is negative`},
		{"constraints: {max_params: -1}", `f:1: constraints.max_params: is negative`},
		{"constraints: {max_latncy: 1s}", `f:1: constraints.max_latncy: unknown field (did you mean "max_latency"?)`},
		{"serves_on: gpu-1", `f:1: serves_on: "gpu-1" names no processors`},
		{"serves_on: cpu-any", `f:1: serves_on: "cpu-any" names no processors`},
		{"serves_on: two", `f:1: serves_on: "two" names no known hardware`},
	} {
		_, err := Parse([]byte(tc.text), "f")
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.text, err)
		case tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)):
			t.Errorf("%s:\n got %v\nwant %s", tc.text, err, tc.want)
		}
	}
}

func TestWhatCosts(t *testing.T) {
	s := Default()
	if s.Costed() || s.Timed() || len(s.Bounds()) > 0 || s.ServingThreads() != 1 {
		t.Errorf("a job without further objectives asks for costs: %+v", s.Bounds())
	}
	s.Objectives = []string{BitsPerByte, Size}
	if !s.Costed() || s.Timed() {
		t.Error("size asks for costs, and not for times")
	}
	s.Constraints.MaxLatency, s.Constraints.MaxSizeMB, s.ServesOn = Duration(20*time.Millisecond), 2, "cpu-3"
	if !s.Timed() || s.ServingThreads() != 3 {
		t.Error("max_latency asks for times, on three threads")
	}
	c := train.Cost{Latency: 0.03, Size: 1e6}
	b := s.Bounds()
	if len(b) != 2 || b[0].Over(c) < 0.499 || b[0].Over(c) > 0.501 || b[1].Over(c) > 0 {
		t.Fatalf("%+v", b)
	}
	if got, want := b[0].Miss(c), "latency 30 ms is over max_latency 20 ms"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var older Spec // of a journal that knows of none of this
	if err := json.Unmarshal([]byte(`{"objective":"bits_per_byte"}`), &older); err != nil || len(older.Goals()) != 1 || older.ServingThreads() != 1 {
		t.Errorf("%v, %+v", err, older.Goals())
	}
}
