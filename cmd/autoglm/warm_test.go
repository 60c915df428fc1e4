package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/search"
)

// A build starts warm from another's folder or its export: the best of that is tried
// first, and the journal alone says so from then on.
func TestWarmStart(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	ok := func(args ...string) (string, string) {
		t.Helper()
		out, errs, code := autoglm(t, dir, args...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, errs)
		}
		return out, errs
	}
	ok("build", "log.txt", "--job", "job.yaml", "--out", "first")
	csv, _ := ok("trials", "first", "--csv")
	write(t, filepath.Join(dir, "trials.csv"), strings.Replace(csv, "params_dropout", "params_unheard_of", 1))
	write(t, filepath.Join(dir, "broken.csv"), "trial,score,params_lr\nt001,much,0.1\n")
	write(t, filepath.Join(dir, "other.csv"), "trial,score,params_depth\nt001,1,3\n")
	for _, tc := range []struct{ from, want string }{
		{"broken.csv", `broken.csv:2: score: "much" is not a number`}, {"nothing", "nothing: is not there"}, {"log.txt", "log.txt: is no .csv"},
	} {
		if _, errs, code := autoglm(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "wrong", "--warm-start", tc.from); code != exitUsage || !strings.Contains(errs, tc.want) {
			t.Errorf("%s: exit %d: %s", tc.from, code, errs)
		}
	}
	_, said := ok("build", "log.txt", "--job", "job.yaml", "--out", "second", "--warm-start", "first,trials.csv,other.csv", "--seed", "2")
	if !strings.Contains(said, "warm start: 24 of 25 earlier trials are used") || !strings.Contains(said, "12 with missing dimensions filled in") || !strings.Contains(said, "1 not, for") {
		t.Errorf("the build says %s", said)
	}
	st, err := replay(filepath.Join(dir, "second"))
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Past) != 25 {
		t.Errorf("%d trials are in the journal", len(st.Past))
	}
	if b, err := os.ReadFile(filepath.Join(dir, "second", "report.html")); err != nil || !strings.Contains(string(b), "Started warm from 12 trials of first, 1 trial of other.csv, 12 trials of trials.csv.") {
		t.Errorf("the report doesn't say what the search began from: %v", err)
	}
	tried := 0
	for _, d := range st.Decisions {
		if d.Reason != search.FromPast {
			continue
		}
		tried++
		if d.Action != search.Start || d.Seq > 8 {
			t.Errorf("%+v", d)
		}
	}
	if tried == 0 || tried > 3 { // of 12 trials a quarter
		t.Errorf("%d trials are of the past", tried)
	}
}
