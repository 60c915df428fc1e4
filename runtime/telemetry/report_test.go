package telemetry

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// hostile is text that must stay text wherever a user's data may put it.
const hostile = `</script><script>document.title="owned"</script><img src=x onerror="document.title='owned'">'"{{.}}`

// build is a made-up build.
type build struct {
	trials  int
	failed  int // of them
	points  int // of each curve
	final   bool
	hostile string
	goals   bool // three objectives and a constraint that the final model misses
}

func writeJSON(t testing.TB, v any, parts ...string) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	write(t, b, parts...)
}

func write(t testing.TB, b []byte, parts ...string) {
	t.Helper()
	path := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func metrics(t testing.TB, dir, id string, points int, end float64) {
	t.Helper()
	var b strings.Builder
	for i := range points {
		m := train.StepMetrics{Step: i*3 + 1, Tokens: int64(i*3+1) * 2048, Seconds: 0.25 * float64(i+1), Loss: 4*math.Exp(-float64(i)/9) + end, LR: 1, PerSecond: 4e4}
		j, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n", j)
		if i%10 == 9 {
			m.Loss, m.Bits = 0, 2*math.Exp(-float64(i)/9)+end
			j, _ = json.Marshal(m)
			fmt.Fprintf(&b, "%s\n", j)
		}
	}
	write(t, []byte(b.String()), dir, "trials", id, "metrics.jsonl")
}

// make writes the build into a new folder.
func (b build) make(t testing.TB) (string, *journal.State) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run1")
	st := journal.NewState()
	at := 0.0
	apply := func(e journal.Event) {
		at += 0.5
		e.Active = at
		st.Apply(e)
	}
	spec := job.Default()
	spec.Name = "made up " + b.hostile
	if b.goals {
		spec.Objectives = []string{job.BitsPerByte, job.Latency, job.Energy}
		spec.Constraints.MaxLatency = job.Duration(4 * time.Millisecond)
	}
	cost := func(ms float64) *train.Cost {
		if !b.goals {
			return nil
		}
		return &train.Cost{Latency: ms / 1e3, Memory: 4e6, Size: 2e6, Energy: ms / 50, EnergyBy: "10 W assumed" + b.hostile, Threads: 1}
	}
	spec.Resolve()
	apply(journal.Event{Kind: journal.Created, Spec: &spec})
	for _, s := range []string{job.StageProbe, job.StageClean, job.StageTokenize} {
		apply(journal.Event{Kind: journal.StageStarted, Stage: s})
		apply(journal.Event{Kind: journal.StageDone, Stage: s})
	}
	plan, err := search.MakePlan(search.Needs{
		WallClock: 180, Slots: 2, Corpus: 1e6, HeldOut: 6e4,
		Pace: func(params int64, devices int) search.Pace {
			return search.Pace{Tokens: 2e10 * float64(devices) / (6 * float64(params)), FLOPs: 6 * float64(params)}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	apply(journal.Event{Kind: journal.StageStarted, Stage: job.StageSearch})
	apply(journal.Event{Kind: journal.Planned, Plan: &plan})
	seq := 0
	one := func(id string, c space.Config, rung int, r journal.TrialReport) {
		d := search.Decision{Seq: seq, Action: search.Start, Trial: id, Config: c, Rung: rung, Resource: 7 * float64(1+2*rung), Reason: "because " + b.hostile}
		apply(journal.Event{Kind: journal.Decided, Decision: &d})
		r.Trial, r.Seq = id, seq
		apply(journal.Event{Kind: journal.TrialEnded, Trial: &r})
		seq++
	}
	best := ""
	for i := range b.trials {
		id := fmt.Sprintf("t%03d", i+1)
		c := space.Config{
			space.Layers: space.Number(float64(2 + i%5)), space.Dim: space.Number(float64(64 * (1 + i%3))), space.Heads: space.Number(4), space.KVHeads: space.Number(2),
			space.FFNRatio: space.Number(3), space.Context: space.Number(256), space.Vocab: space.Number(512), space.Tied: space.Word("true"),
			space.LR: space.Number(1e-4 * math.Pow(1.3, float64(i*7%23))), space.Batch: space.Number(2048), space.Dropout: space.Number(0.01 * float64(i*5%17)),
			space.Optimizer: space.Word("adamw"), space.Decay: space.Number(0.05), space.Warmup: space.Number(20), space.Schedule: space.Word("wsd"),
		}
		if i%2 == 0 {
			c[space.Optimizer], c[space.MuonLR] = space.Word("muon"), space.Number(0.02*float64(1+i%4))
		}
		if b.hostile != "" {
			c["label"] = space.Word(fmt.Sprintf("%d%s", i%3, b.hostile))
		}
		if i >= b.trials-b.failed {
			one(id, c, 0, journal.TrialReport{Failed: true, Err: "training diverged " + b.hostile})
			continue
		}
		end := 2.5 + 0.04*float64(i*7%23)
		metrics(t, dir, id, b.points, end)
		r := journal.TrialReport{State: train.State{Step: 3 * b.points, Tokens: int64(b.points) * 6144, Seconds: 7 + 0.1*float64(i)}, Bits: end, Params: 2e5, PerSecond: 4e4, Cost: cost(5.5 - end + float64(i%3))}
		one(id, c, 0, r)
		if i%5 == 0 {
			r.Bits -= 0.3
			r.State.Seconds *= 3
			one(id, c, 1, r)
			best = id
		}
	}
	writeJSON(t, spec, dir, "job.json")
	report := data.Report{
		Version: 1, Task: data.TaskQA, Confidence: 0.9, Reasons: []string{"columns question and answer" + b.hostile}, Rows: 12000, Kept: 11000, Dropped: 1000, Split: "hash",
		Files: []data.FileReport{{FileInfo: data.FileInfo{File: "/tmp/" + strings.ReplaceAll(b.hostile, "/", "") + "questions.csv.gz", Bytes: 1234567, Format: "csv", Encoding: "windows-1252", Compression: "gzip"}, Roles: map[string]string{"question": "q" + b.hostile, "answer": "a"}, Rows: 12000, Kept: 11000}},
		Rules: map[data.Rule]*data.RuleCount{data.RuleExact: {Dropped: 700}, data.RuleHTML: {Repaired: 90}, data.RuleEncoding: {Dropped: 20, Repaired: 40}, data.RuleTooShort: {}, "none": nil},
		PII:   data.PII{Email: 7, Phone: 3}, Parts: map[string]data.PartCount{"train": {Examples: 9000, Documents: 9000, Bytes: 1e6, ScoredBytes: 6e5}, "valid": {Examples: 900, Bytes: 1e5}, "test": {Examples: 1100, Bytes: 12e4}},
		Warnings: []string{"look out " + b.hostile},
	}
	if b.trials > 0 {
		writeJSON(t, report, dir, "data", "report.json")
	}
	if b.final {
		apply(journal.Event{Kind: journal.StageDone, Stage: job.StageSearch})
		apply(journal.Event{Kind: journal.FinalStarted, Trial: &journal.TrialReport{Trial: best, Seq: -1}})
		metrics(t, dir, "final", 8*b.points, 2)
		apply(journal.Event{Kind: journal.FinalEnded, Trial: &journal.TrialReport{Trial: "final", Seq: -1, State: train.State{Step: 900, Tokens: 2e6, Seconds: 90}, Bits: 2.01, Params: 3e5, PerSecond: 3e4, Cost: cost(4.5)}})
		apply(journal.Event{Kind: journal.Evaluated, Score: &train.Score{NLL: 1e5, Tokens: 4e4, Bytes: 7e4}})
		writeJSON(t, map[string]any{"part": "held-out", "bytes": 61205, "bits_per_byte": 2.0618, "metric": "exact_match", "value": 0.125, "examples": 300}, dir, "bundle", "eval.json")
		if err := WriteSamples(dir, []Sample{{"Call me", " Ishmael." + b.hostile}, {b.hostile, "x"}}); err != nil {
			t.Fatal(err)
		}
		apply(journal.Event{Kind: journal.Finished})
	}
	writeJSON(t, st.Leaderboard("run1"), dir, "leaderboard.json")
	return dir, st
}

// pageOf writes the report and splits it into the page without its scripts, and
// the plots' data.
func pageOf(t testing.TB, dir string, st *journal.State) (page string, plots map[string]any) {
	t.Helper()
	if err := WriteReport(dir, st); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, ReportFile))
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > MaxBytes {
		t.Errorf("the report has %d bytes, at most %d", len(b), MaxBytes)
	}
	s := string(b)
	parts := regexp.MustCompile(`(?s)<script( type="application/json" id="plots")?>(.*?)</script>`).FindAllStringSubmatch(s, -1)
	if len(parts) != 3 || parts[0][1] == "" {
		t.Fatalf("%d scripts, want the data, the library and the page's own", len(parts))
	}
	if strings.Count(s, "<script") != 3+strings.Count(parts[1][2], "<script") {
		t.Error("a script that is not ours is in the page")
	}
	if err := json.Unmarshal([]byte(parts[0][2]), &plots); err != nil {
		t.Fatalf("the plots' data is no JSON: %v", err)
	}
	if regexp.MustCompile(`NaN|[^a-z]Inf`).MatchString(parts[0][2]) {
		t.Error("the plots' data holds a number that is none")
	}
	for _, p := range parts {
		s = strings.Replace(s, p[0], "", 1)
	}
	return s, plots
}

var sections = []string{"curves", "trials", "importance", "cost", "data", "time", "plan", "winner", "leaderboard", "files"}

func TestReport(t *testing.T) {
	tests := []struct {
		name  string
		build build
		has   []string
	}{
		{"nothing yet", build{}, []string{"not finished", "No trial has been started yet", "The data has not been prepared yet", "No training has been recorded"}},
		{"one trial", build{trials: 1, points: 20}, []string{"t001", "bits per byte so far", "1 trial has a score; at least 6", "No parameter differs"}},
		{"all failed", build{trials: 3, failed: 3}, []string{"3 failed", "training diverged", "No trial has a score yet", "There is no winner yet"}},
		{"unfinished", build{trials: 9, failed: 2, points: 30}, []string{"the best so far", "exact duplicate", "windows-1252, gzip", "e-mail address"}},
		{"finished", build{trials: 30, failed: 4, points: 300, final: true}, []string{"2.0618", "exact match", "trained to the end", "What it writes", "Ishmael", "4 failed", `href="bundle/eval.json"`, "above chance"}},
		{"hostile", build{trials: 12, failed: 2, points: 30, final: true, hostile: hostile}, []string{"&lt;/script&gt;"}},
		{"objectives", build{trials: 30, failed: 4, points: 30, final: true, goals: true}, []string{"The model misses a constraint: latency 4.5 ms is over max_latency 4 ms.", "latency at most 4 ms", "How the front grew", "Energy by 10 W assumed", "the knee of the front"}},
		{"hostile objectives", build{trials: 12, failed: 2, points: 30, final: true, hostile: hostile, goals: true}, []string{"&lt;/script&gt;"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, st := tt.build.make(t)
			page, plots := pageOf(t, dir, st)
			for _, id := range sections {
				if !strings.Contains(page, `<section id="`+id+`">`) {
					t.Errorf("no section %s", id)
				}
			}
			for _, s := range tt.has {
				if !strings.Contains(page, s) {
					t.Errorf("the page lacks %q", s)
				}
			}
			if strings.Contains(page, "<img") || strings.Contains(page, `onerror="`) {
				t.Error("hostile text became an element")
			}
			if m := regexp.MustCompile(`(?i)(src|srcset|href|action|poster|data|cite)\s*=\s*["']?\s*(https?:|//)[^"'> ]*|url\(|@import`).FindString(page); m != "" {
				t.Errorf("the page leads outside: %s", m)
			}
			if strings.Contains(page, "cannot be read") {
				t.Error("a file could not be read")
			}
			if n := len(list(plots["trials"])); n != tt.build.trials {
				t.Errorf("%d trials in the plots, want %d", n, tt.build.trials)
			}
			if n, want := len(list(plots["curves"])), tt.build.trials-tt.build.failed; tt.build.final && n != want+1 || !tt.build.final && n != want {
				t.Errorf("%d curves, %d trials trained", n, want)
			}
		})
	}
}

// The front that is drawn is of what holds the constraint, and its volume grows to the end.
func TestReportOfObjectives(t *testing.T) {
	dir, st := build{trials: 40, failed: 3, points: 10, final: true, goals: true}.make(t)
	_, plots := pageOf(t, dir, st)
	goals, _ := plots["goals"].(map[string]any)
	marks := map[string]int{}
	for _, p := range list(goals["points"]) {
		p := p.(map[string]any)
		mark := p["mark"].(string)
		marks[mark]++
		if late := list(p["values"])[1].(float64) > 4; late != (mark == "misses") {
			t.Errorf("%v has the mark %q", p, mark)
		}
	}
	if marks["knee"] != 1 || marks["front"] == 0 || marks["misses"] == 0 {
		t.Errorf("marks %v", marks)
	}
	last := 0.0
	for _, v := range list(goals["volume"]) {
		share := v.(map[string]any)["share"].(float64)
		if share < last-1e-9 || share > 1 {
			t.Errorf("a volume of %g after %g", share, last)
		}
		last = share
	}
	if last == 0 {
		t.Error("no volume")
	}
	if dir, st = (build{trials: 9, points: 10, final: true}).make(t); st.Final.Cost != nil {
		t.Fatal("a cost that nobody asked for")
	}
	if page, plots := pageOf(t, dir, st); plots["goals"] != nil || strings.Contains(page, `id="objectives"`) {
		t.Error("one objective has a section of several")
	}
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func TestPolicyNamesEveryScript(t *testing.T) {
	lib, err := echarts()
	if err != nil {
		t.Fatal(err)
	}
	dir, st := build{trials: 2, points: 5}.make(t)
	page, _ := pageOf(t, dir, st)
	want := strings.NewReplacer("'", "&#39;", "+", "&#43;").Replace(policy(lib, reportJS))
	if !strings.Contains(page, want) {
		t.Errorf("the page lacks its policy %s", want)
	}
	if !strings.Contains(want, "default-src &#39;none&#39;") {
		t.Error("the policy lets something in")
	}
}

func TestReportWithoutAState(t *testing.T) {
	dir, _ := build{trials: 9, points: 20, final: true}.make(t)
	page, plots := pageOf(t, dir, nil)
	if !strings.Contains(page, "journal was not read") || len(list(plots["trials"])) != 9 {
		t.Error("leaderboard.json did not stand in for the state")
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	dir, st := build{trials: 3, points: 20, final: true}.make(t)
	write(t, []byte("{"), dir, "data", "report.json")
	write(t, []byte("nonsense\n{\"step\":1,\"loss\":2}\n{\"st"), dir, "trials", "t001", "metrics.jsonl")
	page, _ := pageOf(t, dir, st)
	for _, s := range []string{"data/report.json cannot be read", "trials/t001/metrics.jsonl: 2 lines are no records"} {
		if !strings.Contains(page, s) {
			t.Errorf("the page lacks %q", s)
		}
	}
}

func TestReportStaysSmall(t *testing.T) {
	b := build{trials: 700, points: 40, hostile: strings.Repeat("<long> ", 60)}
	dir, st := b.make(t)
	page, _ := pageOf(t, dir, st)
	if !strings.Contains(page, "more trials stand in leaderboard.json") || !strings.Contains(page, "more trials are left out") {
		t.Error("what was left out is not said")
	}
}

func TestReportOfAFolderThatIsNotThere(t *testing.T) {
	if err := WriteReport(filepath.Join(t.TempDir(), "missing"), nil); err == nil {
		t.Error("no error")
	}
}

func BenchmarkReport(b *testing.B) {
	dir, st := build{trials: 60, points: 400, final: true}.make(b)
	for b.Loop() {
		if _, err := render(dir, st); err != nil {
			b.Fatal(err)
		}
	}
}
