package job

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestStepsOfAFile(t *testing.T) {
	s, err := Parse([]byte(`
data: {files: [steps/fetch/out.txt, more.txt]}
steps:
  - name: fetch
    run: ./fetch.sh --lang en
    before: probe
    image: docker.io/library/python:3.12
    network: true
    env: {LANGUAGE: en}
    resources: {cpus: 1.5, memory: 1GiB}
    timeout: 10m
    retries: 3
    backoff: 5s
    priority: 2
  - {name: mix, run: [./mix, -v], needs: [fetch, clean], before: [search], files: [lib.sh]}
  - {name: say, run: [echo, hello]}
stages: {clean: {backoff: 2s, retries: 1}}
`), "d/job.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Step{
		Name: "fetch", Run: Command{"sh", "-c", "./fetch.sh --lang en"}, Files: []string{"d/fetch.sh"}, Before: []string{"probe"},
		Image: "docker.io/library/python:3.12", Network: true, Env: map[string]string{"LANGUAGE": "en"},
		Resources: Resources{CPUs: 1.5, Memory: 1 << 30}, Timeout: Duration(10 * time.Minute), Retries: 3, Backoff: Duration(5 * time.Second), Priority: 2,
	}
	if !reflect.DeepEqual(s.Steps[0], want) {
		t.Errorf("%+v", s.Steps[0])
	}
	if got := s.Steps[1].Files; !slices.Equal(got, []string{"d/lib.sh", "d/mix"}) {
		t.Errorf("files of mix: %v", got)
	}
	if len(s.Steps[2].Files) > 0 {
		t.Errorf("files of say: %v", s.Steps[2].Files)
	}
	if !slices.Equal(s.Data.Files, []string{"steps/fetch/out.txt", "d/more.txt"}) {
		t.Errorf("data: %v", s.Data.Files)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	back := Default()
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back.Steps, s.Steps) {
		t.Errorf("%v; %+v", err, back.Steps)
	}
	if err := json.Unmarshal([]byte(`{"steps": [{"name": "x", "run": "a | b"}]}`), &back); err != nil || !slices.Equal(back.Steps[0].Run, Line("a | b")) {
		t.Errorf("%v; %+v", err, back.Steps)
	}
	var order []string
	for _, st := range StagesOf(s) {
		order = append(order, st.Name)
		if st.Name == "clean" && (st.Backoff != 2*time.Second || st.Retries != 1) {
			t.Errorf("%+v", st)
		}
	}
	if got := strings.Join(order, " "); got != "fetch probe clean tokenize mix search train evaluate bundle say" {
		t.Error(got)
	}
}

func TestErrorsOfSteps(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"- {name: Fetch, run: x}", `j:2: steps[0].name: "Fetch" is no name`},
		{"- {run: x}", `steps[0].name: "" is no name`},
		{"- {name: ../a, run: x}", `steps[0].name: "../a" is no name`},
		{"- {name: clean, run: x}", `steps[0].name: "clean" is a stage of ours`},
		{"- {name: a, run: x}\n- {name: a, run: x}", `j:3: steps[1].name: "a" stands twice`},
		{"- {name: a}", `steps[0].run: is empty`},
		{"- {name: a, run: []}", `steps[0].run: is empty`},
		{"- {name: a, run: 7}", `steps[0].run: must be a list`},
		{"- {name: a, run: x, needs: [tokenise]}", `steps[0].needs[0]: "tokenise" is no stage and no step`},
		{"- {name: a, run: x, needs: [tokenise]}", `(did you mean "tokenize"?)`},
		{"- {name: a, run: x}\n- {name: b, run: x, before: [a]}", `steps[1].before[0]: "a" is no stage of ours`},
		{"- {name: a, run: x, needs: [a]}", `steps[0]: waits for itself: a → a`},
		{"- {name: a, run: x, needs: [b]}\n- {name: b, run: x, needs: [a]}", `waits for itself: a → b → a`},
		{"- {name: a, run: x, needs: [train], before: [clean]}", `j:2: steps[0]: waits for itself: `},
		{"- {name: a, run: x, network: true}", `steps[0].network: is about containers`},
		{"- {name: a, run: x, image: -v}", `steps[0].image: "-v" is no image`},
		{"- {name: a, run: x, resources: {cpus: -1}}", `steps[0].resources.cpus: -1 is outside`},
		{"- {name: a, run: x, resources: {memory: 1 GiB or so}}", `steps[0].resources.memory: "1 GiB or so" is no size`},
		{"- {name: a, run: x, resources: {memory: 1kB}}", `steps[0].resources.memory: 1000B is too little`},
		{"- {name: a, run: x, retries: 11}", `steps[0].retries: 11 is outside`},
		{"- {name: a, run: x, backoff: 1h}", `steps[0].backoff: 1h0m0s is more than 10m0s`},
		{"- {name: a, run: x, timeout: -3s}", `steps[0].timeout: "-3s" is negative`},
		{"- {name: a, run: x, priority: 101}", `steps[0].priority: 101 is outside`},
		{"- {name: a, run: x, env: {AUTOGLM_STEP: b}}", `steps[0].env: "AUTOGLM_STEP" is no name`},
		{"- {name: a, run: x, files: [b/f, c/f]}", `steps[0].files[1]: "f" is a name that is taken`},
		{"- {name: a, run: x, files: [log]}", `steps[0].files[0]: "log" is a name that is taken`},
		{"- {name: a, run: x, after: [probe]}", `steps[0].after: unknown field`},
		{"- {name: a, run: x}\ndata: {files: [steps/a/f]}", `data.files[0]: is made by the step a, for which no stage waits; give it before: [probe]`},
		{"- {name: a, run: x, needs: [bundle]}\ndata: {valid: [steps/a/f]}", `data.valid[0]: is made by the step a`},
		{strings.Repeat("- {name: a, run: x}\n", 65), `steps: are 65`},
	} {
		_, err := Parse([]byte("steps:\n"+tc.in), "j")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q:\n got %v\nwant %s", tc.in, err, tc.want)
		}
	}
	s, err := Parse([]byte("steps:\n- {name: a, run: x, before: [probe]}\n- {name: b, run: x}\ndata: {files: [steps/a/../b/f, steps/c/f]}"), "d/j")
	if err != nil || !slices.Equal(s.Data.Files, []string{"d/steps/b/f", "d/steps/c/f"}) && !slices.Equal(s.Data.Files, []string{"steps/a/../b/f", "d/steps/c/f"}) {
		t.Errorf("%v, %v", s.Data.Files, err)
	}
}

func TestMachineTriesAgainLater(t *testing.T) {
	m := NewMachine([]Stage{{Name: "a", Retries: 3, Backoff: 5 * time.Minute}, {Name: "b", Timeout: time.Second}}, Resources{})
	for i, step := range []struct {
		e    Event
		want string
	}{
		{Event{Kind: Begin}, "start_stage a 1; start_stage b 1"},
		{Event{Kind: StageDue, Stage: "b"}, ""}, // nobody waits
		{Event{Kind: StageFailed, Stage: "a", Err: "x"}, "delay_stage a 2 5m0s"},
		{Event{Kind: StageDone, Stage: "a"}, ""},
		{Event{Kind: StageDone, Stage: "b"}, ""}, // a's time has not come
		{Event{Kind: StageDue, Stage: "a"}, "start_stage a 2"},
		{Event{Kind: StageDue, Stage: "a"}, ""},
		{Event{Kind: StageFailed, Stage: "a", Err: "x"}, "delay_stage a 3 10m0s"},
		{Event{Kind: StageDue, Stage: "a"}, "start_stage a 3"},
		{Event{Kind: StageTimeout, Stage: "a"}, "stop_stage a 3; delay_stage a 4 10m0s"}, // the most
		{Event{Kind: StageDue, Stage: "a"}, "start_stage a 4"},
		{Event{Kind: StageFailed, Stage: "a", Err: "x"}, "fail a 0 x"},
	} {
		if got := actions(m.Step(step.e)); got != step.want {
			t.Fatalf("step %d: %q, want %q", i, got, step.want)
		}
	}
	// After a restart the attempts count, and so does what is left of the time.
	m = NewMachine([]Stage{{Name: "a", Retries: 2, Backoff: time.Minute}, {Name: "b"}}, Resources{})
	m.RestoreFailed("a", 1, 40*time.Second)
	if got := actions(m.Step(Event{Kind: Begin})); got != "start_stage b 1; delay_stage a 2 40s" {
		t.Fatal(got)
	}
	if got := actions(m.Step(Event{Kind: Cancel})); got != "stop_stage b 1" || m.Job() != Cancelled {
		t.Fatal(got)
	}
	m = NewMachine([]Stage{{Name: "a", Retries: 1, Backoff: time.Minute}}, Resources{})
	m.RestoreFailed("a", 7, time.Hour) // another machine's clock
	if got := actions(m.Step(Event{Kind: Begin})); got != "delay_stage a 2 1m0s" {
		t.Fatal(got)
	}
}

func TestMachineKeepsToTheRoom(t *testing.T) {
	gib := func(n Bytes) Resources { return Resources{CPUs: 1, Memory: n << 30} }
	m := NewMachine([]Stage{
		{Name: "ours"},
		{Name: "small", Resources: gib(1)},
		{Name: "large", Resources: gib(3), Priority: 1},
		{Name: "huge", Resources: gib(9), Priority: -1},
	}, Resources{CPUs: 2, Memory: 4 << 30})
	for i, step := range []struct {
		e    Event
		want string
	}{
		{Event{Kind: Begin}, "start_stage large 1; start_stage ours 1; start_stage small 1"},
		{Event{Kind: StageDone, Stage: "ours"}, ""},
		{Event{Kind: StageDone, Stage: "small"}, ""},
		{Event{Kind: StageDone, Stage: "large"}, "start_stage huge 1"}, // alone
		{Event{Kind: StageDone, Stage: "huge"}, "finish  0"},
	} {
		if got := actions(m.Step(step.e)); got != step.want {
			t.Fatalf("step %d: %q, want %q", i, got, step.want)
		}
	}
}

// Any graph that is valid comes to its end, whatever fails on the way: a stage starts
// once all that it needs is done, never twice at a time, no more often than it may,
// and what runs takes no more than there is.
func TestAnyGraphEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Default()
		for i := range rapid.IntRange(0, 12).Draw(t, "steps") {
			step := Step{
				Name: fmt.Sprintf("s%d", i), Run: Command{"true"}, Retries: rapid.IntRange(0, 3).Draw(t, "retries"),
				Backoff: Duration(rapid.IntRange(0, 2).Draw(t, "backoff")) * Duration(time.Second), Priority: rapid.IntRange(-2, 2).Draw(t, "priority"),
				Resources: Resources{CPUs: float64(rapid.IntRange(0, 5).Draw(t, "cpus")), Memory: Bytes(rapid.IntRange(0, 5).Draw(t, "memory")) << 30},
			}
			for j := range i {
				if rapid.IntRange(0, 3).Draw(t, "edge") == 0 {
					step.Needs = append(step.Needs, fmt.Sprintf("s%d", j))
				}
			}
			for _, n := range new(Spec).stageNames() {
				switch rapid.IntRange(0, 11).Draw(t, "stage") {
				case 0:
					step.Needs = append(step.Needs, n)
				case 1:
					step.Before = append(step.Before, n)
				}
			}
			s.Steps = append(s.Steps, step)
			if s.Validate() != nil { // it waits for itself
				s.Steps[i].Needs, s.Steps[i].Before = nil, nil
			}
		}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		room := Resources{CPUs: 4, Memory: 4 << 30}
		stages := StagesOf(s)
		byName := map[string]Stage{}
		for _, st := range stages {
			byName[st.Name] = st
		}
		m := NewMachine(stages, room)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		lucky := rapid.Bool().Draw(t, "lucky") // no attempt that is the last fails
		done, running, delayed, started := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]int{}
		ended := false
		take := func(as []Action) {
			for _, a := range as {
				st := byName[a.Stage]
				switch a.Kind {
				case StartStage:
					started[a.Stage]++
					if running[a.Stage] || done[a.Stage] || delayed[a.Stage] || ended || a.Attempt != started[a.Stage] || a.Attempt > st.Retries+1 {
						t.Fatalf("%+v: running %v, done %v, %d starts", a, running, done, started[a.Stage])
					}
					for _, n := range st.Needs {
						if !done[n] {
							t.Fatalf("%s starts before %s is done", a.Stage, n)
						}
					}
					running[a.Stage] = true
				case DelayStage:
					if delayed[a.Stage] = true; a.Delay != st.delay(a.Attempt-1) {
						t.Fatalf("%+v", a)
					}
				case StopStage:
					delete(running, a.Stage)
				case Finish, Fail:
					ended = true
				}
			}
			var used Resources
			var with [2]int // stages that take some
			for name := range running {
				r := byName[name].Resources
				used.CPUs, used.Memory = used.CPUs+r.CPUs, used.Memory+r.Memory
				if r.CPUs > 0 {
					with[0]++
				}
				if r.Memory > 0 {
					with[1]++
				}
			}
			if with[0] > 1 && used.CPUs > room.CPUs || with[1] > 1 && used.Memory > room.Memory {
				t.Fatalf("%v take %+v", running, used)
			}
		}
		take(m.Step(Event{Kind: Begin}))
		for range 1000 {
			if ended {
				break
			}
			var could []Event
			for _, st := range stages {
				if delayed[st.Name] {
					could = append(could, Event{Kind: StageDue, Stage: st.Name})
				}
				if running[st.Name] {
					could = append(could, Event{Kind: StageDone, Stage: st.Name})
					if !lucky || started[st.Name] <= st.Retries {
						could = append(could, Event{Kind: StageFailed, Stage: st.Name, Err: "x"})
					}
				}
			}
			if len(could) == 0 {
				t.Fatalf("nothing runs and nothing waits for its time; done %v", done)
			}
			e := could[rng.IntN(len(could))]
			delete(running, e.Stage)
			delete(delayed, e.Stage)
			if e.Kind == StageDone {
				done[e.Stage] = true
			}
			take(m.Step(e))
		}
		if !ended || lucky && (m.Job() != Done || len(done) != len(stages)) {
			t.Fatalf("job %s with %d of %d done", m.Job(), len(done), len(stages))
		}
	})
}
