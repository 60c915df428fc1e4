package main

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// TestTrialsForOthers exports a build's trials. Optuna and pyarrow read them where they
// are there, with the lines of Python that --help shows.
func TestTrialsForOthers(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "run"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	ok := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := autoglm(t, dir, args...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, stderr)
		}
		return stdout
	}
	rows, err := csv.NewReader(strings.NewReader(ok("trials", "run", "--csv"))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 13 || rows[0][0] != "trial" {
		t.Errorf("%d lines of CSV, the first %v", len(rows), rows[0])
	}
	if out := ok("trials", "run", "--parquet", "trials.parquet"); out != "" {
		t.Errorf("--parquet prints %q", out)
	}
	write(t, filepath.Join(dir, "trials.json"), ok("trials", "run", "--optuna"))

	var ranked []standing
	if err := json.Unmarshal([]byte(ok("leaderboard", "run", "--json")), &ranked); err != nil {
		t.Fatal(err)
	}
	rows13 := slices.DeleteFunc(slices.Clone(ranked), func(s standing) bool { return s.Level == 2 })
	if len(rows13) != 13 || ranked[0].Test == nil || ranked[0].Score == nil || !ranked[0].CanInfer || ranked[0].Level != 1 {
		t.Errorf("%d models, the first %+v", len(rows13), ranked[0])
	}
	ranked = rows13
	if ranked[0].Model != "final" || ranked[0].Megabytes <= 0 || ranked[1].Place != 1 || ranked[1].Score == nil || ranked[1].FitTime <= 0 {
		t.Errorf("the leaderboard begins with %+v", ranked)
	}
	table := ok("leaderboard", "run")
	if lines := strings.Split(table, "\n"); len(lines) < 15 || !strings.Contains(lines[0], "score_val") || strings.Fields(lines[1])[1] != "final" || !strings.Contains(table, "stopped") {
		t.Errorf("the leaderboard is\n%s", table)
	}

	for _, args := range [][]string{{"trials", "nowhere"}, {"trials", "nowhere", "--optuna"}, {"leaderboard", "nowhere"}, {"trials", "run", "--csv", "--json"}, {"leaderboard"}} {
		if _, stderr, code := autoglm(t, dir, args...); code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}

	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with optuna and pyarrow"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	_, script, _ := strings.Cut(ok("trials", "--help"), "import json, optuna")
	script, _, _ = strings.Cut("import json, optuna"+script, "\n\n")
	script = strings.ReplaceAll(script, "\n  ", "\n") + `
import pyarrow.parquet
table = pyarrow.parquet.read_table("trials.parquet")
print(json.dumps({"n": len(study.trials), "best": study.best_value, "importance": len(optuna.importance.get_param_importances(study)),
	"trial": study.best_trial.user_attrs["trial"], "steps": len(study.best_trial.intermediate_values), "rows": table.num_rows, "first": table["trial"][0].as_py()}))
`
	c := exec.CommandContext(t.Context(), python, "-c", script)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	var got struct {
		N, Importance, Steps, Rows int
		Best                       float64
		Trial, First               string
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.N != 12 || got.Best != *ranked[1].Score || got.Trial != ranked[1].Model || got.Steps != 2 || got.Rows != 12 || got.First != ranked[1].Model || got.Importance == 0 {
		t.Errorf("Python read %+v", got)
	}
}

// An ensemble stands below the final model, with what its members cost together.
func TestStandingsOfAnEnsemble(t *testing.T) {
	dir := t.TempDir()
	arch := glm.Arch{Vocab: 320, Dim: 64, Layers: 1, Heads: 2, KVHeads: 2, FFN: 64, Context: 32, Tied: true}.WithDefaults()
	vote := node.Ensemble{
		Members: []node.Member{{Model: "final", Weight: 0.75, Arch: arch, Weights: "final.safetensors", Took: 2}, {Model: "t002", Weight: 0.25, Arch: arch, Weights: "t002.safetensors", Took: 3}},
		Valid:   train.Comparison{Bits: 1.5, Against: 1.6, Taken: true}, HeldOut: &train.Comparison{Bits: 1.7, Against: 1.75},
	}
	text, err := json.Marshal(vote)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, node.EnsembleDir), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, node.EnsembleDir, node.EnsembleFile), string(text))
	held, valid := 1.75, 1.6
	b := journal.Leaderboard{Trials: []journal.Entry{{ID: "t002", Seconds: 2, Score: &valid}}, Final: &journal.Entry{ID: "final", Seconds: 10, Score: &held, Valid: &valid}}
	rows, err := standings(dir, b)
	if err != nil || len(rows) != 3 {
		t.Fatalf("%+v, %v", rows, err)
	}
	if v := rows[1]; v.Model != "ensemble" || v.Level != 2 || !v.CanInfer || *v.Test != 1.7 || *v.Score != 1.5 || v.Latency != 5 || v.FitTime != 12 || v.Params != 2*arch.Params() {
		t.Errorf("%+v", v)
	}
	if f := rows[0]; *f.Test != 1.75 || *f.Score != 1.6 || f.Latency != 2 || rows[2].Latency != 3 || rows[2].Test != nil || rows[2].CanInfer {
		t.Errorf("%+v", rows)
	}
	write(t, filepath.Join(dir, node.EnsembleDir, node.EnsembleFile), "{")
	if _, err := standings(dir, b); err == nil || !strings.Contains(err.Error(), node.EnsembleFile) {
		t.Errorf("a damaged ensemble: %v", err)
	}
}
