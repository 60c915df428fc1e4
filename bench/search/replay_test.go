package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/search"
)

// lessons writes a table of a grid of 6 by 4 configurations and reads it: all curves
// fall, and the best is reached by a = 4, b = y alone.
func lessons(t *testing.T, change func(rows []string) []string) ([]*lesson, error) {
	rows := []string{"text,a,b,gflop,bits_1,bits_2,bits_3,bits_4,bits_5,bits_6,bits_7,bits_8,bits_9"}
	for a := range 6 {
		for i, b := range []string{"x", "y", "z", "w"} {
			row := fmt.Sprintf("one,%d,%s,1.5", a, b)
			for e := range 9 {
				end := 2 + 0.2*math.Abs(float64(a-4)) + 0.3*math.Abs(float64(i-1))
				row += fmt.Sprintf(",%.4f", end+2/float64(e+2))
			}
			rows = append(rows, row)
		}
	}
	if change != nil {
		rows = change(rows)
	}
	path := filepath.Join(t.TempDir(), "curves.csv")
	if err := os.WriteFile(path, []byte(strings.Join(rows, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return readLessons(path)
}

func TestLessons(t *testing.T) {
	ls, err := lessons(t, nil)
	if err != nil || len(ls) != 1 || ls[0].epochs != 9 || len(ls[0].curves) != 24 || ls[0].best != 2.2 {
		t.Fatalf("%+v, %v", ls, err)
	}
	if c := ls[0].curves["42"]; c == nil || c[8] != 2.2 { // a is 4; w, x, y, z
		t.Errorf("%v", ls[0].curves)
	}
	for want, change := range map[string]func([]string) []string{
		"holds no curves":        func(r []string) []string { return r[:1] },
		"want text,…,gflop":      func(r []string) []string { r[0] = strings.Replace(r[0], "gflop", "s", 1); return r },
		"has 23 curves of 24":    func(r []string) []string { return r[:24] },
		"line 25: one,0,x":       func(r []string) []string { r[24] = r[1]; return r },
		`line 2: bits_1 is "-"`:  func(r []string) []string { r[1] = "one,0,x,1.5,-,2,2,2,2,2,2,2,2"; return r },
		"wrong number of fields": func(r []string) []string { r[3] += ",1"; return r },
	} {
		if _, err := lessons(t, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestLearningCurves reads the table that is kept here.
func TestLearningCurves(t *testing.T) {
	ls, err := readLessons("../testdata/lmcurves.csv.gz")
	if err != nil {
		t.Fatal(err)
	}
	if len(ls) != 2 {
		t.Fatalf("%d texts", len(ls))
	}
	for _, l := range ls {
		if len(l.curves) != 360 || l.epochs != 20 || l.best < 2 || l.best > 3.5 {
			t.Errorf("%s: %d curves of %d epochs, the best %g", l.name, len(l.curves), l.epochs, l.best)
		}
	}
}

// TestReplays: every scheduler finds the one configuration that is best, spends no epoch
// twice and none beyond the last, whichever strategy asks.
func TestReplays(t *testing.T) {
	ls, err := lessons(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, scheduler := range search.Schedulers() {
		name := "tpe/" + scheduler
		r, err := ls[0].run(t.Context(), name, false, "", 1, 3, 30)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		// pasha does not train to the end what it need not to tell the trials apart.
		if !r.Found && scheduler != "pasha" || r.Spent < 9 || r.Found && r.Spent > 216 || len(r.Best) != 30 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for _, name := range []string{"tpe", "tpe/never", "nobody/asha"} {
		if _, err := ls[0].run(t.Context(), name, false, "", 1, 3, 30); err == nil {
			t.Errorf("%s runs", name)
		}
	}
	t.Setenv("AUTOGLM_SEARCH_PEERS", "")
	if _, err := ls[0].run(t.Context(), "syne-asha", true, "", 1, 3, 30); err == nil || !strings.Contains(err.Error(), ".ci/search-peers") {
		t.Error(err)
	}
}
