package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/metric"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The README's policy is one.
func TestPolicyOfTheREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(models:.*?)```").FindSubmatch(readme)
	if found == nil {
		t.Fatal("the README has no policy")
	}
	var out bytes.Buffer
	c := policyCommand()
	c.SetOut(&out)
	c.SetArgs([]string{"check", writeFile(t, "policy.yaml", string(found[1]))})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Count(s, "\n") != 6 || !strings.Contains(s, "ok   chat, test 3: abstain, by gate\n") || !strings.Contains(s, "2 served names, 5 tests passed\n") {
		t.Error(s)
	}
}

func TestPolicyCheckRefuses(t *testing.T) {
	fails := "models:\n  m:\n    gate: {confidence: 0.5, below: abstain}\n    tests:\n      - {answer: x, confidence: 0.4, want: accept}\n"
	for name, args := range map[string][]string{
		"no file":    {"check"},
		"not there":  {"check", filepath.Join(t.TempDir(), "none")},
		"a mistake":  {"check", writeFile(t, "p.yaml", "models: {m: {gaet: {}}}")},
		"a test":     {"check", writeFile(t, "p.yaml", fails)},
		"other verb": {"chek", "x"},
	} {
		if code := run(append([]string{"policy"}, args...)); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	for name, text := range map[string]string{
		"another model": "models: {other: {gate: {confidence: 0.5, below: abstain}}}", "a test that fails": fails, "no policy": "",
	} {
		if code := run([]string{"serve", "m=" + tinyBundleDir(t), "--listen", "127.0.0.1:0", "--grpc", "", "--policy", writeFile(t, "p.yaml", text)}); code != exitUsage {
			t.Errorf("serve with %s: exit code %d", name, code)
		}
	}
}

// A policy is read anew on SIGHUP; a broken one leaves the old one in force.
func TestServeReloadsItsPolicy(t *testing.T) {
	fixed := func(text string) string {
		return fmt.Sprintf("models: {tiny: {rules: [{when: 'attempt > 0', then: {answer: %q}}]}, blend: {vote: {over: [tiny, same], kind: soft}}}", text)
	}
	path := writeFile(t, "policy.yaml", fixed("one"))
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan string, 1)
	f := serveFlags{
		device: "cpu",
		listen: "127.0.0.1:0", policy: path, slots: 2, queue: 4, maxBody: 1 << 20, timeout: time.Minute, grace: 10 * time.Second, ready: func(web, _ string) { ready <- web },
	}
	done := make(chan error, 1)
	go func() { done <- f.run(ctx, []string{"tiny=" + tinyBundleDir(t), "same=" + tinyBundleDir(t)}) }()
	var addr string
	select {
	case addr = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	said := func(model string) string {
		t.Helper()
		res, err := http.Post("http://"+addr+"/v1/completions", "application/json", strings.NewReader(`{"model":"`+model+`","prompt":"x","max_tokens":3,"temperature":0}`))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var a struct{ Choices []struct{ Text string } }
		if err := json.Unmarshal(b, &a); err != nil || len(a.Choices) != 1 {
			t.Fatalf("%v: %s", err, b)
		}
		return a.Choices[0].Text
	}
	if got := said("tiny"); got != "one" {
		t.Errorf("%q", got)
	}
	if got, want := said("blend"), said("same"); got != want || got == "" { // a model and its like
		t.Errorf("%q, want %q", got, want)
	}
	versions := 1
	reload := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		versions++
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // until the last model is new
			res, err := http.Get("http://" + addr + "/v1/models/blend")
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if strings.Contains(string(b), fmt.Sprintf(`"versions":["%d"]`, versions)) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("no version %d: %s", versions, b)
			}
		}
	}
	reload("models: [")
	if got := said("tiny"); got != "one" {
		t.Errorf("after a broken file: %q", got)
	}
	reload(fixed("two"))
	for end := time.Now().Add(20 * time.Second); said("tiny") != "two"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new policy does not count")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What calibrate fits stands in eval.json beside what was there, and gates find it; eval
// takes the metrics that it is asked for.
func TestCalibrateAndMetrics(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	b := servetest.Bundle(t, 1)
	b.Eval = json.RawMessage(`{"part": "held-out", "bits_per_byte": 3}`)
	if err := bundle.Write(dir, b); err != nil {
		t.Fatal(err)
	}
	text := writeFile(t, "held.txt", strings.Repeat("Call me Ishmael. Some years ago, never mind how long, I went to sea.\n", 60))
	if code := run([]string{"calibrate", dir, "--data", text}); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	got, err := bundle.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var e node.Evaluation
	if err := json.Unmarshal(got.Eval, &e); err != nil || e.BitsPerByte != 3 || e.Part != "held-out" || e.Calibration == nil {
		t.Fatalf("%+v, %v", e, err)
	}
	c := *e.Calibration
	if v, fitted := policy.Calibrated(got); !fitted || v != c.Temperature {
		t.Errorf("a gate has the temperature %g, %v", v, fitted)
	}
	// Random weights know nothing: they are to be believed less than they say.
	if !(c.Temperature > 2 && c.After.NLL < c.Before.NLL && c.After.ECE < c.Before.ECE) || c.Fitted < 100 || c.Judged < 100 || c.Part != text || len(c.SHA256) != 64 {
		t.Errorf("%+v", c)
	}
	again, err := node.Calibrate(t.Context(), dir, text)
	if err != nil || again != c {
		t.Errorf("%+v, then %+v: %v", c, again, err)
	}
	for name, args := range map[string][]string{
		"no bundle": {t.TempDir(), "--data", text}, "no data": {dir}, "no file": {dir, "--data", text + ".none"}, "GGUF": {"m.gguf"}, "none": {},
	} {
		if code := run(append([]string{"calibrate"}, args...)); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	if code := run([]string{"calibrate", dir, "--data", writeFile(t, "short.txt", "Call me.")}); code != exitFailed {
		t.Errorf("a short text: exit code %d", code)
	}

	var lines []string
	for i := range 120 {
		lines = append(lines, fmt.Sprintf(`{"prompt": "what is number %d?", "response": "it is the %d"}`, i, i))
	}
	answers := writeFile(t, "answers.jsonl", strings.Join(lines, "\n")+"\n")
	ms, err := metric.Parse("rouge-l,bleu,exact-match,bits-per-byte")
	if err != nil {
		t.Fatal(err)
	}
	scored, err := node.EvaluateFile(t.Context(), got, answers, ms)
	if err != nil || len(scored.Metrics) != 4 || scored.Metrics[metric.BitsPerByte] != scored.BitsPerByte || scored.Metrics[metric.ExactMatch] != 0 || scored.Examples != 100 {
		t.Errorf("%+v, %v", scored, err)
	}
	if code := run([]string{"eval", dir, text, "--metrics", "bits-per-byte"}); code != exitDone {
		t.Errorf("bits per byte: exit code %d", code)
	}
	for name, args := range map[string][]string{"no such": {text, "--metrics", "blue"}, "no answers": {text, "--metrics", "bleu"}} {
		if code := run(append([]string{"eval", dir}, args...)); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}
