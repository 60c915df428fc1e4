package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "autoglm-test-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "autoglm")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n", out)
		os.Exit(1)
	}
	// Builds of these tests exclude each other, and no one else's.
	if err := os.Setenv("AUTOGLM_LOCKS", filepath.Join(dir, "locks")); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// autoglm runs the binary in dir.
func autoglm(t testing.TB, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), binary, args...)
	c.Dir = dir
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// start starts the binary in dir and hands over what it prints.
func start(t testing.TB, dir string, args ...string) (c *exec.Cmd, stdout io.Reader, stderr *bytes.Buffer) {
	t.Helper()
	c = exec.CommandContext(t.Context(), binary, args...)
	c.Dir = dir
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr = new(bytes.Buffer)
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, stdout, stderr
}

func corpus(t testing.TB, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "log.txt"), actorstest.Text(1500))
	write(t, filepath.Join(dir, "job.yaml"), `hardware_constraint: cpu-any
budget: {tokens: 60000}
space: {dim: 64, layers: "int(1, 2)", context: 32, vocab: [320, 384], batch_tokens: 256, warmup_steps: 2}
`)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// made is what a build must leave whatever happened to it on the way.
func made(t testing.TB, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "leaderboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var lb journal.Leaderboard
	if err := json.Unmarshal(b, &lb); err != nil {
		t.Fatal(err)
	}
	lb.Job = ""
	for i := range lb.Trials {
		lb.Trials[i].Seconds, lb.Trials[i].PerSecond = 0, 0
	}
	lb.Final.Seconds, lb.Final.PerSecond = 0, 0
	out, err := json.Marshal(lb)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"model.safetensors", "tokenizer.json", "config.json", "README.md", "eval.json", "chat_template.jinja", "generation_config.json"} {
		c, err := os.ReadFile(filepath.Join(dir, "bundle", f))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c...)
	}
	return string(out)
}

// Killed at random moments and resumed, a build loses nothing, runs nothing
// twice that had finished, and ends with the same bytes.
func TestKillNineAndResume(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	begin := time.Now()
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "calm"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	took := time.Since(begin)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	args := []string{"build", "log.txt", "--job", "job.yaml", "--out", "run"}
	for kills := 0; kills < 5; {
		c := exec.Command(binary, args...)
		c.Dir = dir
		var stderr bytes.Buffer
		c.Stderr = &stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("after %d kills: %v\n%s", kills, err, stderr.String())
			}
			kills = 5
		case <-time.After(time.Duration(rng.Int64N(int64(took)/3) + int64(took)/20)):
			_ = c.Process.Signal(syscall.SIGKILL)
			<-ended
			kills++
		}
		if _, err := os.Stat(filepath.Join(dir, "run", "journal", journal.FileName)); err == nil {
			args = []string{"resume", "run"}
		}
	}
	if _, stderr, code := autoglm(t, dir, args...); code != 0 {
		t.Fatalf("resume: exit %d: %s", code, stderr)
	}
	if got, want := made(t, filepath.Join(dir, "run")), made(t, filepath.Join(dir, "calm")); got != want {
		t.Errorf("the killed build differs:\n%.2000s\nwant\n%.2000s", got, want)
	}
	// Nothing that was committed was run again: one end a decision.
	log, err := journal.OpenFile(filepath.Join(dir, "run", "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ends := map[int]int{}
	err = log.Replay(func(rec []byte) error {
		e, err := journal.Decode(rec)
		if err == nil && e.Kind == journal.TrialEnded {
			if ends[e.Trial.Seq]++; ends[e.Trial.Seq] > 1 {
				t.Errorf("decision %d ended twice", e.Trial.Seq)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInterruptKeepsTheState(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	c, out, stderr := start(t, dir, "build", "log.txt", "--budget", "60s", "--out", "run")
	var err error
	buf, all := make([]byte, 4096), ""
	for !strings.Contains(all, "t001") { // a trial runs
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("%v after %s%s", err, all, stderr.String())
		}
		all += string(buf[:n])
	}
	_ = c.Process.Signal(os.Interrupt)
	for err == nil {
		_, err = out.Read(buf)
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 130 || !strings.Contains(stderr.String(), "autoglm resume run") {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
}

func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	write(t, filepath.Join(dir, "empty.txt"), "")
	write(t, filepath.Join(dir, "line.txt"), "one line\n")
	write(t, filepath.Join(dir, "binary.bin"), "\x7fELF\x02\x01\x01\x00"+strings.Repeat("\x00\x01\x02\xff", 4000))
	write(t, filepath.Join(dir, "cut.parquet"), "PAR1"+strings.Repeat("x", 1000))
	write(t, filepath.Join(dir, "typo.yaml"), "max_seq_lenght: 64\n")
	write(t, filepath.Join(dir, "gpu.json"), `{ "task_type": "text-generation", "max_seq_length": 512,
  "hardware_constraint": "gpu-4x-a100", // 4 A100 GPUs
  "search_strategy": "evolutionary" }`)
	write(t, filepath.Join(dir, "vocab.yaml"), "space: {vocab: 100000}\nbudget: {tokens: 20000}\n")
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "folder", "x"), "x")
	for _, tc := range []struct {
		args []string
		want string // in stderr
	}{
		{[]string{"build", "empty.txt"}, "empty"},
		{[]string{"build", "line.txt"}, "line.txt"},
		{[]string{"build", "binary.bin"}, "binary.bin"},
		{[]string{"build", "cut.parquet"}, "cut.parquet"},
		{[]string{"build", "folder"}, "directory"},
		{[]string{"build", "nothing.txt"}, "nothing.txt"},
		{[]string{"build", "log.txt", "--budget", "1s"}, "at least"},
		{[]string{"build", "log.txt", "--budget", "soon"}, "duration"},
		{[]string{"build", "log.txt", "--budget", "3m", "--trials", "4"}, "two budgets"},
		{[]string{"build", "log.txt", "--job", "typo.yaml"}, `typo.yaml:1: max_seq_lenght: unknown field (did you mean "max_seq_length"?)`},
		{[]string{"build", "log.txt", "--job", "nothing.yaml"}, "nothing.yaml"},
		{[]string{"build", "log.txt", "--job", "gpu.json", "--out", "g"}, "--allow-fallback"},
		{[]string{"build", "log.txt", "--job", "vocab.yaml", "--out", "v"}, "vocab"},
		{[]string{"build", "log.txt", "--out", "folder"}, "not empty"},
		{[]string{"build", "--bogus"}, "bogus"},
		{[]string{"bild"}, "unknown command"},
		{[]string{"resume", "folder"}, "holds no job"},
		{[]string{"resume"}, "accepts 1 arg"},
		{[]string{"probe", "nothing.txt"}, "nothing.txt"},
		{[]string{"generate", "folder", "--prompt", "x"}, "config.json"},
		{[]string{"eval", "folder", "log.txt"}, "config.json"},
		{[]string{"compress", "folder", "--int8"}, "--out"},
		{[]string{"compress", "folder", "--int8", "--out", "c"}, "config.json"},
		{[]string{"compress", "folder", "--int8", "--int4", "--out", "c"}, "give one"},
		{[]string{"compress", "folder", "--out", "c"}, "nothing to do"},
		{[]string{"compress", "folder", "--student", "auto", "--out", "c"}, "--distil"},
		{[]string{"compress", "folder", "--int8", "--max-loss", "little", "--out", "c"}, "1%"},
		{[]string{"trials", "folder"}, "leaderboard.json"},
		{[]string{"config", "check", "typo.yaml"}, "unknown field"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			_, stderr, code := autoglm(t, dir, tc.args...)
			if code != 2 || !strings.Contains(stderr, tc.want) {
				t.Errorf("exit %d, want 2 and %q in:\n%s", code, tc.want, stderr)
			}
			if strings.Contains(stderr, "goroutine ") {
				t.Errorf("a stack trace: %s", stderr)
			}
		})
	}
}

func TestJSONIsOneEventALine(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	out, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "run", "--json")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	names := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var e struct {
			Event string `json:"event"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Event == "" {
			t.Fatalf("not an event: %q (%v)", line, err)
		}
		names[e.Event]++
	}
	for _, want := range []string{"stage_started", "planned", "decided", "trial_ended", "final_ended", "evaluated", "done"} {
		if names[want] == 0 {
			t.Errorf("no %s among %v", want, names)
		}
	}
	for _, f := range []string{
		"job.json", "report.html", "leaderboard.json", "data/report.json", "trials/t001/config.json", "trials/t001/metrics.jsonl",
		"bundle/config.json", "bundle/model.safetensors", "bundle/tokenizer.json", "bundle/tokenizer_config.json", "bundle/chat_template.jinja", "bundle/README.md", "bundle/eval.json", "bundle/generation_config.json",
	} {
		if _, err := os.Stat(filepath.Join(dir, "run", f)); err != nil {
			t.Error(err)
		}
	}
	// What was made generates, and scores.
	text, stderr, code := autoglm(t, dir, "generate", "run/bundle", "--prompt", "On day", "--temperature", "0", "--max-tokens", "12")
	if code != 0 || !strings.HasPrefix(text, "On day") || len(text) < 10 {
		t.Errorf("generate: exit %d, %q %s", code, text, stderr)
	}
	out, stderr, code = autoglm(t, dir, "eval", "run/bundle", "log.txt", "--json")
	var e struct {
		Bits  float64 `json:"bits_per_byte"`
		Bytes int64   `json:"bytes"`
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil || code != 0 || e.Bits <= 0 || e.Bits > 5 {
		t.Errorf("eval: exit %d, %s %s %v", code, out, stderr, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "log.txt")); err != nil || e.Bytes != info.Size() {
		t.Errorf("eval counted %d bytes: %v", e.Bytes, err)
	}
	// It is compressed, scored on the held-out part, and the smaller one does the same.
	out, stderr, code = autoglm(t, dir, "compress", "run/bundle", "--int8", "--max-loss", "5%", "--out", "run/small", "--json")
	var small struct {
		Part   string
		Done   bool
		Report struct{ Before, After struct{ Bytes int64 } }
	}
	if err := json.Unmarshal([]byte(out), &small); err != nil || code != 0 || !small.Done || small.Part != "held-out" || small.Report.After.Bytes*2 > small.Report.Before.Bytes {
		t.Errorf("compress: exit %d, %s %s %v", code, out, stderr, err)
	}
	text, stderr, code = autoglm(t, dir, "generate", "run/small", "--prompt", "On day", "--temperature", "0", "--max-tokens", "12")
	if code != 0 || !strings.HasPrefix(text, "On day") || len(text) < 10 {
		t.Errorf("generate of what was compressed: exit %d, %q %s", code, text, stderr)
	}
	// What loses more than it may leaves nothing.
	out, stderr, code = autoglm(t, dir, "compress", "run/bundle", "--prune", "0.9", "--recover-steps", "1", "--max-loss", "0", "--data", "log.txt", "--out", "run/worse")
	if _, err := os.Stat(filepath.Join(dir, "run", "worse")); code != 1 || !strings.Contains(stderr, "--max-loss") || !strings.Contains(out, "bits per byte") || err == nil {
		t.Errorf("a model that lost most of itself: exit %d, %s %s", code, out, stderr)
	}
	if _, stderr, code = autoglm(t, dir, "compress", "run/small", "--int4", "--out", "moved/x"); code != 0 && !strings.Contains(stderr, "worse") {
		t.Errorf("of 8 bits to 4: exit %d, %s", code, stderr)
	}
	// A damaged bundle is refused by name.
	model := filepath.Join(dir, "run", "bundle", "model.safetensors")
	b, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(model, bytes.Replace(b, []byte("model.norm.weight"), []byte("model.mron.weight"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code = autoglm(t, dir, "generate", "run/bundle", "--prompt", "x"); code != 2 || !strings.Contains(stderr, "model.mron.weight") && !strings.Contains(stderr, "model.norm.weight") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestPlanTrainsNothing(t *testing.T) {
	dir := t.TempDir()
	out, stderr, code := autoglm(t, dir, "plan", "--budget", "3m")
	if code != 0 || !strings.Contains(out, "Scheduler: auto") || !strings.Contains(out, "Final") && !strings.Contains(out, "final training") {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	out, stderr, code = autoglm(t, dir, "plan", "--trials", "4", "--json")
	var o struct {
		Seconds struct{ Search, Final, Total float64 }
	}
	if err := json.Unmarshal([]byte(out), &o); code != 0 || err != nil || o.Seconds.Search <= 0 || o.Seconds.Total <= o.Seconds.Final {
		t.Errorf("exit %d, %v: how long 4 trials take: %+v %s", code, err, o, stderr)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Fatalf("plan left %v", left)
	}
}

// The default binary is static: it needs no dynamic loader.
func TestBinaryIsStaticAndSmall(t *testing.T) {
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic loader")
		}
	}
	if info, err := os.Stat(binary); err != nil || info.Size() > 75<<20 { // with what debuggers need; 53 MB without
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}

// The flag says what the field of the job says, and the other way round over a job
// that says so.
func TestPlaintextCollectives(t *testing.T) {
	file := filepath.Join(t.TempDir(), "job.yaml")
	write(t, file, "plaintext_collectives: true\n")
	for _, tc := range []struct {
		args []string
		want bool
	}{
		{nil, false},
		{[]string{"--plaintext-collectives"}, true},
		{[]string{"--job", file}, true},
		{[]string{"--job", file, "--plaintext-collectives=false"}, false},
	} {
		var f jobFlags
		c := &cobra.Command{}
		f.add(c)
		if err := c.ParseFlags(tc.args); err != nil {
			t.Fatal(err)
		}
		if s, err := f.spec(c, nil); err != nil || s.PlaintextCollectives != tc.want {
			t.Errorf("%q: %t, %v", tc.args, s.PlaintextCollectives, err)
		}
	}
}
