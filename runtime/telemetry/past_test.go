package telemetry

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// What a build leaves and what its exports say are the same trials, in the same order.
func TestPastOfEveryForm(t *testing.T) {
	dir, st := build{trials: 12, failed: 2, points: 4}.make(t)
	board := st.Leaderboard("run1")
	var want []search.Past
	for _, e := range board.Trials {
		if e.Score != nil && e.Status != "failed" {
			want = append(want, search.Past{Trial: e.ID, Config: e.Config, Rung: max(e.Rung, 0), Score: *e.Score})
		}
	}
	if len(want) < 8 {
		t.Fatalf("%d trials with a score", len(want))
	}
	out := t.TempDir()
	file := func(name string, f func(b *bytes.Buffer) error) string {
		var b bytes.Buffer
		if err := f(&b); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(out, name)
		write(t, b.Bytes(), path)
		return path
	}
	sp, err := space.Decoder(space.Limits{MaxVocab: 2048, MaxContext: 512}, nil)
	if err != nil {
		t.Fatal(err)
	}
	log, err := journal.OpenFile(filepath.Join(out, "run", "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range st.Decisions {
		r := st.Outcomes[i]
		for _, e := range []journal.Event{{Kind: journal.Decided, Decision: &d}, {Kind: journal.TrialEnded, Trial: &r}} {
			b, err := e.Encode()
			if err == nil {
				err = log.Append(b, false)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := ReadPast([]string{filepath.Join(out, "run")}); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("a build that runs: %v", err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, board, dir, "leaderboard.json")
	csv := file("trials.csv", func(b *bytes.Buffer) error { return WriteCSV(b, board) })
	for _, path := range []string{
		filepath.Join(out, "run"), filepath.Join(dir, "leaderboard.json"), dir, csv,
		file("trials.parquet", func(b *bytes.Buffer) error { return WriteParquet(b, board) }),
		file("optuna.json", func(b *bytes.Buffer) error { return WriteOptuna(b, st, sp) }),
		file("past.json", func(b *bytes.Buffer) error { return WritePast(b, want) }),
	} {
		got, err := ReadPast([]string{path})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for i := range got {
			if base := filepath.Base(path); base == "optuna.json" {
				got[i].Rung = want[min(i, len(want)-1)].Rung // it has steps instead
			}
			got[i].Source = ""
		}
		if !reflect.DeepEqual(got, want) && filepath.Base(path) != "optuna.json" || len(got) == 0 {
			t.Errorf("%s: %d trials, want %d:\n%+v\n%+v", path, len(got), len(want), got[:min(len(got), 1)], want[0])
		}
	}
	both, err := ReadPast([]string{csv, dir})
	if err != nil || len(both) != 2*len(want) || both[0].Source != csv || both[len(want)].Source == csv {
		t.Errorf("%d of two files, %v", len(both), err)
	}
}

func TestBrokenPastIsNamed(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct{ text, want string }{
		"a.csv":     {"trial,score\nt001,1\n", "a.csv:1: has no column score, or none params_NAME"},
		"b.csv":     {"trial,score,params_lr\nt001,1,0.1\nt002,much,0.1\n", `b.csv:3: score: "much" is not a number`},
		"c.csv":     {"trial,score,params_lr\nt001,1\n", "c.csv:2: wrong number of fields"},
		"d.csv":     {"trial,score,params_lr\nt001,1,a b\n", `d.csv:2: params_lr: "a b" is neither a number nor a word`},
		"e.csv":     {"trial,score,rung,params_lr\nt001,1,x,2\n", `e.csv:2: rung: "x" is not a whole number`},
		"f.csv":     {"", "f.csv:1: is no CSV"},
		"a.json":    {"{\n\"trials\": [\n}", "a.json:3: invalid character"},
		"b.json":    {"{}", "b.json: trials: is missing"},
		"c.json":    {`{"direction": "up", "trials": []}`, `c.json: direction: "up" is not`},
		"d.json":    {`{"trials": [{"id": "t1", "score": 1}]}`, "d.json: trials[0].params: are neither there nor"},
		"e.json":    {`{"trials": [{"id": "t1", "score": "x"}]}`, "e.json: trials[0]"},
		"a.parquet": {"PAR1xxxxPAR1", "a.parquet: is "},
		"a.txt":     {"x", "a.txt: is no .csv"},
	} {
		path := filepath.Join(dir, name)
		write(t, []byte(tc.text), path)
		if _, err := ReadPast([]string{path}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
	if _, err := ReadPast([]string{filepath.Join(dir, "nothing")}); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPast([]string{filepath.Join(dir, "empty")}); err == nil || !strings.Contains(err.Error(), "holds no build") {
		t.Error(err)
	}
	// Trials of other tools: Optuna's data frame as pandas writes it, and what is maximised.
	write(t, []byte(",number,value,params_lr,params_tied,state\n0,0,1.5,0.1,True,COMPLETE\n1,1,,0.2,False,FAIL\n"), dir, "frame.csv")
	write(t, []byte(`{"direction": "maximize", "trials": [{"state": "COMPLETE", "value": 3, "params": {"lr": 0.1}}, {"state": "RUNNING", "params": {"lr": 1}}]}`), dir, "most.json")
	past, err := ReadPast([]string{filepath.Join(dir, "frame.csv"), filepath.Join(dir, "most.json")})
	if err != nil || len(past) != 2 || past[0].Config.Key() != "lr=0.1 tied=true" || past[0].Score != 1.5 || past[1].Score != -3 {
		t.Errorf("%+v, %v", past, err)
	}
}

func FuzzPast(f *testing.F) {
	_, st := build{trials: 3, points: 2}.make(f)
	b := st.Leaderboard("")
	var csv, packed bytes.Buffer
	if err := WriteCSV(&csv, b); err != nil {
		f.Fatal(err)
	}
	if err := WriteParquet(&packed, b); err != nil {
		f.Fatal(err)
	}
	f.Add(csv.Bytes())
	f.Add(packed.Bytes())
	f.Add([]byte(`{"direction": "maximize", "trials": [{"state": "COMPLETE", "value": 3, "params": {"lr": 0.1}}]}`))
	f.Add([]byte(`{"past": [{"source": "a", "config": {"lr": true}, "score": 1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, read := range []func(string, []byte) ([]search.Past, error){csvPast, jsonPast, parquetPast} {
			past, err := read("x", b)
			if err != nil {
				continue
			}
			for _, p := range past {
				if len(p.Config) == 0 {
					t.Fatalf("%+v has no parameters", p)
				}
			}
		}
	})
}
