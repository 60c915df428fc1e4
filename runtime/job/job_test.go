package job

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestSampleOfTheDesign(t *testing.T) {
	s, err := Parse([]byte(`{ "task_type": "text-generation", "max_seq_length": 512,
  "hardware_constraint": "gpu-4x-a100", // 4 A100 GPUs
  "search_strategy": "evolutionary" }`), "job.json")
	if err != nil {
		t.Fatal(err)
	}
	if s.TaskType != "text-generation" || s.MaxSeqLength != 512 || s.HardwareConstraint != "gpu-4x-a100" || s.SearchStrategy != "evolutionary" {
		t.Fatalf("%+v", s)
	}
}

func TestYAMLAndJSONAgree(t *testing.T) {
	y := "# a job\ntask_type: dialogue\nbudget:\n  wall_clock: 10m\nspace:\n  lr: log_uniform(1e-5, 1e-2)\n  batch_tokens: [2048, 4096]\n  dropout: 0.1\ndata:\n  files: a.jsonl\n"
	j := "{\t\"task_type\": \"dialogue\", /* c */ \"budget\": {\"wall_clock\": 600},\n\t\"space\": {\"lr\": \"log_uniform(1e-5, 1e-2)\", \"batch_tokens\": [2048, 4096], \"dropout\": 0.1}, \"data\": {\"files\": [\"a.jsonl\"]},}"
	a, err := Parse([]byte(y), "d/job.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse([]byte(j), "d/job.json")
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Fatalf("%+v\n%+v", a, b)
	}
	if a.Budget.WallClock.D() != 10*time.Minute || a.Data.Files[0] != "d/a.jsonl" {
		t.Fatalf("%+v", a)
	}
}

func TestCompress(t *testing.T) {
	s, err := Parse([]byte("compress: int8\nstages:\n  compress: {timeout: 1h}\nsteps:\n  - {name: publish, run: ./x, needs: [compress]}\n"), "j")
	if err != nil {
		t.Fatal(err)
	}
	if s.Compress == nil || s.Compress.Weights != "int8" || s.Compress.Loss() != DefaultMaxLoss || s.Compress.Steps() != 0 {
		t.Errorf("%+v", s.Compress)
	}
	var names []string
	for _, st := range StagesOf(s) {
		names = append(names, st.Name)
	}
	if got := strings.Join(names[len(names)-3:], " "); got != "bundle compress publish" {
		t.Errorf("the graph ends with %s", got)
	}
	if s, err = Parse([]byte(`{"compress": {"prune": 0.3, "max_loss": 0.05, "weights": "int4"}}`), "j"); err != nil || s.Compress.Loss() != 0.05 || s.Compress.Steps() != DefaultRecoverySteps {
		t.Errorf("%+v, %v", s.Compress, err)
	}
	if s, err = Parse([]byte("{}"), "j"); err != nil || len(StagesOf(s)) != len(Stages()) {
		t.Errorf("a job that asks for no compression has the stage, %v", err)
	}
}

func TestErrorsNameFileLineAndPath(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"{\n\"max_seq_lenght\": 3}", `j:2: max_seq_lenght: unknown field (did you mean "max_seq_length"?)`},
		{"max_seq_length: long", "j:1: max_seq_length: must be a whole number"},
		{"max_seq_length: 3", "j:1: max_seq_length: 3 is outside"},
		{"task_type: 7", "j:1: task_type: must be text"},
		{"task_type: summarisation", `(did you mean "summarization"?)`},
		{"search_strategy: evolutionry", `(did you mean "evolutionary"?)`},
		{"budget:\n  trials: 3\n  wall_clock: 3m", "j:1: budget: give one of"},
		{"budget:\n  wall_clock: 1s", "j:2: budget.wall_clock: 1s is too short"},
		{"budget: soon", "j:1: budget: \"soon\" is no duration"},
		{"budget: 1s", "j:1: budget.wall_clock: 1s is too short"},
		{"budget:\n  wall_clock: soon", "j:2: budget.wall_clock: \"soon\" is no duration"},
		{"space:\n  lr: gauss(1, 2)", "j:2: space.lr: \"gauss(1, 2)\": unknown range"},
		{"space:\n  layer: 3", `j:2: space.layer: is no dimension`},
		{"scheduler: ahsa", `j:1: scheduler: "ahsa" is not one of auto, hyperband, sha, asha`},
		{"forbidden:\n  - lr>0.1\n  - optimiser=muon", "j:3: forbidden[1]: optimiser is no dimension"},
		{"forbidden: optimizer>muon", "j:1: forbidden"},
		{"space:\n  lr: log_uniform(1e-5, 1e-2) ~ 1", "j:2: space.lr: \"log_uniform(1e-5, 1e-2) ~ 1\": the believed value 1 is outside"},
		{"space:\n  dim: [64, 100]", "j:2: space.dim: 100 is not a multiple of 64"},
		{"max_seq_length: 64\nspace:\n  context: 128", "j:3: space.context: 128 is given beside max_seq_length"},
		{"hardware_constraint: tpu-4", "j:1: hardware_constraint: \"tpu-4\" names no known hardware"},
		{"pinning: alway", `j:1: pinning: "alway" is not one of auto, never, always (did you mean "always"?)`},
		{"backend: nccl\nplaintext_collectives: maybe", "j:2: plaintext_collectives: must be true or false"},
		{"metric: blue", `j:1: metric: "blue" is not one of auto, accuracy,`},
		{"metric: bits-per-byte", "j:1: metric: bits-per-byte is the main score already"},
		{"grow_final: of", `j:1: grow_final: "of" is not one of auto, off (did you mean "off"?)`},
		{"compress:\n  weights: int9", `j:2: compress.weights: "int9" is not one of int8, int4`},
		{"compress:\n  student: auto\n  teacher: ensembel", `j:3: compress.teacher: "ensembel" is not one of bundle, ensemble (did you mean "ensemble"?)`},
		{"compress:\n  weights: int8\n  teacher: ensemble", "j:3: compress.teacher: has nobody to teach"},
		{"compress:\n  prune: 0.1\n  search: true", "j:3: compress.search: compares trials by their rounded weights; give weights"},
		{"compress:\n  prune_heads: 1.5", "j:2: compress.prune_heads: 1.5 is not 0 or more and less than 1"},
		{"compress: int3", `"int3" is not one of int8, int4`},
		{"compress:\n  prune: 1", "j:2: compress.prune: 1 is not 0 or more and less than 1"},
		{"compress:\n  max_loss: 0.1", "j:1: compress: asks for nothing"},
		{"compress:\n  weights: int8\n  recover: 2m", "j:1: compress: has a recovery and nothing to recover from"},
		{"compress:\n  weights: int8\n  max_loss: -1", "j:3: compress.max_loss: -1 is negative"},
		{"stages:\n  compress:\n    timeout: 3m", "j:2: stages.compress: is no stage"},
		{"isolation: proces", `j:1: isolation: "proces" is not one of auto, process, none (did you mean "process"?)`},
		{"isolation: process\nbackend: inproc", "j:2: backend: inproc joins ranks of one process"},
		{"placement:\n  gpu_load: 2", "j:2: placement.gpu_load: 2 is not above 0"},
		{"placement:\n  gpu_load: 0.5\n  hysteresis: 0.6", "j:3: placement.hysteresis: 0.6 is not between 0 and gpu_load 0.5"},
		{"placement:\n  load: 0.5", "placement.load: unknown field"},
		{"data:\n  files: 3", "j:2: data.files: must be a list"},
		{"seed: 1\nseed: 2", "j:2: seed: stands twice"},
		{"seed:", "j:1: seed: has no value"},
		{"- 1", "j:1: must be a set of fields, is a list"},
		{"", "j: is empty"},
		{"{\"seed\": 1", "is not JSON"},
		{"a: b: c", "neither YAML nor JSON"},
		{"stages:\n  serch:\n    timeout: 3m", `j:2: stages.serch: is no stage`},
	} {
		_, err := Parse([]byte(tc.in), "j")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q:\n got %v\nwant %s", tc.in, err, tc.want)
		}
	}
}

func actions(as []Action) string {
	var out []string
	for _, a := range as {
		text := a.Err
		if a.Delay > 0 {
			text = a.Delay.String()
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %d %s", a.Kind, a.Stage, a.Attempt, text)))
	}
	return strings.Join(out, "; ")
}

func TestMachine(t *testing.T) {
	m := NewMachine([]Stage{{Name: "a"}, {Name: "b", Needs: []string{"a"}, Retries: 1}, {Name: "c", Needs: []string{"a"}}, {Name: "d", Needs: []string{"b", "c"}, Timeout: time.Second}}, Resources{})
	for i, step := range []struct {
		e    Event
		want string
	}{
		{Event{Kind: Begin}, "start_stage a 1"},
		{Event{Kind: StageDone, Stage: "c"}, ""}, // late or early: ignored
		{Event{Kind: StageDone, Stage: "a"}, "start_stage b 1; start_stage c 1"},
		{Event{Kind: StageFailed, Stage: "b", Err: "x"}, "start_stage b 2"},
		{Event{Kind: StageDone, Stage: "c"}, ""},
		{Event{Kind: StageDone, Stage: "b"}, "start_stage d 1"},
		{Event{Kind: StageTimeout, Stage: "d"}, "stop_stage d 1; fail d 0 took longer than 1s"},
		{Event{Kind: StageDone, Stage: "d"}, ""},
	} {
		if got := actions(m.Step(step.e)); got != step.want {
			t.Fatalf("step %d: %q, want %q", i, got, step.want)
		}
	}
	if m.Job() != Failed {
		t.Fatal(m.Job())
	}
}

func TestMachineGoesOnAfterARestart(t *testing.T) {
	m := NewMachine(Stages(), Resources{})
	m.Restore(StageProbe)
	m.Restore(StageClean)
	if got := actions(m.Step(Event{Kind: Begin})); got != "start_stage tokenize 1" {
		t.Fatal(got)
	}
	if got := actions(m.Step(Event{Kind: Cancel})); got != "stop_stage tokenize 1" || m.Job() != Cancelled {
		t.Fatal(got, m.Job())
	}
	m = NewMachine(Stages(), Resources{})
	for _, s := range Stages() {
		m.Restore(s.Name)
	}
	if got := actions(m.Step(Event{Kind: Begin})); got != "finish  0" || m.Job() != Done {
		t.Fatal(got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("{\"seed\": 1} // x")
	f.Add("space: {lr: [1, 2]}")
	f.Add("a: &x [*x]")
	f.Add("steps: [{name: a, run: ./x -v, needs: [b], resources: {cpus: 2, memory: 1GiB}}, {name: b, run: [], before: probe}]")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = Parse([]byte(s), "f") })
}
