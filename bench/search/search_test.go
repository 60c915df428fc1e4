package main

import (
	"io"
	"math"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func TestTables(t *testing.T) {
	ts, err := tasks([]string{"tables"}, "../testdata")
	if err != nil {
		t.Fatal(err)
	}
	if len(ts) != 9 {
		t.Fatalf("%d tables", len(ts))
	}
	for _, task := range ts {
		// Some configuration is the best there is, and half are no better than 1.
		best, worse, n := math.Inf(1), 0, 0
		var walk func(i int, c space.Config)
		walk = func(i int, c space.Config) {
			if i == len(task.dims) {
				scores, _ := task.eval(c)
				r := task.regret(scores[0])
				best = min(best, r)
				n++
				if r >= 1 {
					worse++
				}
				return
			}
			d := task.dims[i]
			for j := range int(d.Cells()) {
				if d.Numeric() {
					c[d.Name] = space.Number(float64(j))
				} else {
					c[d.Name] = d.Choices[j]
				}
				walk(i+1, c)
			}
		}
		walk(0, space.Config{})
		if math.Abs(best) > 1e-12 || math.Abs(float64(worse)/float64(n)-0.5) > 0.05 {
			t.Errorf("%s: the best of %d has %g, %d have 1 or more", task.name, n, best, worse)
		}
	}
}

func TestTableOfItsOwn(t *testing.T) {
	task, err := readTable("new.csv", strings.NewReader("key,v1,v2\n00,3,5\n01,,\n10,1,\n11,nan,7\n"))
	if err != nil {
		t.Fatal(err)
	}
	of := func(a, b string) float64 {
		s, _ := task.eval(space.Config{"p0": space.Word(a), "p1": space.Word(b)})
		return s[0]
	}
	if of("c0", "c0") != 4 || !math.IsInf(of("c0", "c1"), 1) || of("c1", "c0") != 1 || of("c1", "c1") != 7 {
		t.Errorf("%g %g %g %g", of("c0", "c0"), of("c0", "c1"), of("c1", "c0"), of("c1", "c1"))
	}
	for bad, want := range map[string]string{
		"":                       "EOF",
		"a,b\n":                  `the first line is "a,b"`,
		"key,v1\n0,1\n00,2\n":    "line 3: key \"00\" has 2 digits",
		"key,v1\n?,1\n":          "is no digit",
		"key,v1\n0,\n":           "holds no results",
		"key,v1\n\"0,1\n":        "parse error",
		"key,v1\n0,1\n1,2\n,3\n": "has 0 digits",
	} {
		if _, err := readTable("t.csv", strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", bad, err, want)
		}
	}
	if _, err := readTable("hpobench_x.csv", strings.NewReader("key,v1\n00,1\n")); err == nil {
		t.Error("a table with too few digits is read")
	}
}

func FuzzTable(f *testing.F) {
	f.Add("key,v1\n00,1\n01,2\n")
	f.Add("key,v1,v2\n0z,1,\n")
	f.Fuzz(func(t *testing.T, s string) {
		task, err := readTable("t.csv", io.LimitReader(strings.NewReader(s), 1<<16))
		if err != nil {
			return
		}
		if _, err := task.space(); err != nil {
			t.Skip(err) // hundreds of digits
		}
	})
}

func TestFunctions(t *testing.T) {
	at := map[string][]float64{
		"branin": {math.Pi, 2.275}, "hartmann6": {0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573},
		"ackley5": {3.3, 3.3, 3.3, 3.3, 3.3}, "rosenbrock5": {1, 1, 1, 1, 1}, "levy10": {1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
	}
	for _, f := range functions() {
		c := space.Config{}
		for i, d := range f.dims {
			c[d.Name] = space.Number(at[strings.TrimPrefix(f.name, "syn/")][i])
		}
		if s, _ := f.eval(c); math.Abs(s[0]) > 1e-5 {
			t.Errorf("%s is %g at its minimum", f.name, s[0])
		}
	}
}

func TestDecoders(t *testing.T) {
	ts, err := tasks([]string{"hwgpt", "hwgptmo"}, "../testdata")
	if err != nil {
		t.Fatal(err)
	}
	// The first row of the table: perplexity 40.281, 14.12 ms.
	c := space.Config{"embed": space.Number(0), "layers": space.Number(12), "bias": space.Word("true")}
	heads, mlp := []float64{12, 8, 12, 4, 12, 4, 8, 8, 12, 8, 12, 8}, []float64{2, 3, 4, 4, 2, 3, 4, 2, 2, 4, 3, 2}
	for i := range 12 {
		c["heads"+space.Number(float64(i)).String()], c["mlp"+space.Number(float64(i)).String()] = space.Number(heads[i]), space.Number(mlp[i])
	}
	both, _ := ts[4].eval(c)
	if math.Abs(both[0]-40.281) > 0.1 || math.Abs(both[1]-14.12) > 0.3 {
		t.Errorf("perplexity %g, latency %g", both[0], both[1])
	}
	for i, want := range []bool{true, false, false, false} {
		if _, violation := ts[i].eval(c); violation > 0 != want {
			t.Errorf("%s is missed by %g", ts[i].name, violation)
		}
	}
}

func TestSearchers(t *testing.T) {
	ts, err := tasks([]string{"syn/branin", "hwgpt/24", "hwgptmo"}, "../testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range ts {
		line, _, err := own("auto", nil).search(t.Context(), task, 1, 12, 3)
		if err != nil || len(line) != 12 {
			t.Fatalf("%s: %v, %v", task.name, line, err)
		}
		for i := 1; i < len(line); i++ {
			if worse := line[i] > line[i-1]; worse && task.reference == nil || line[i] < line[i-1] && task.reference != nil {
				t.Errorf("%s: the best so far got worse: %v", task.name, line)
			}
		}
	}
	if _, err := theirSearch("nobody", ""); err == nil {
		t.Error("there is a peer nobody")
	}
	t.Setenv("AUTOGLM_SEARCH_PEERS", "")
	if _, err := theirSearch("smac", ""); err == nil || !strings.Contains(err.Error(), ".ci/search-peers") {
		t.Error(err)
	}
}

// A table of one space makes a warm start of another, and its inversion the opposite.
func TestWarmStart(t *testing.T) {
	straight, err := warmStart("hpobench_car", "../testdata")
	if err != nil {
		t.Fatal(err)
	}
	inverted, err := warmStart("inverted:hpobench_car", "../testdata")
	if err != nil {
		t.Fatal(err)
	}
	a, b := straight(3), inverted(3)
	if len(a) != warmTrials || len(b) != len(a) || a[0].Config.Key() != b[0].Config.Key() || a[0].Score != -b[0].Score || straight(4)[0].Config.Key() == a[0].Config.Key() {
		t.Errorf("%d and %d trials, %+v, %+v", len(a), len(b), a[0], b[0])
	}
	if _, err := warmStart("nothing", "../testdata"); err == nil {
		t.Error("a table that is not there is no error")
	}
}
