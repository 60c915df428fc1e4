package telemetry

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"testing"

	"github.com/parquet-go/parquet-go"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func TestCSVAndParquetHoldTheSame(t *testing.T) {
	_, st := build{trials: 12, failed: 2, points: 4, hostile: `a,"b"` + "\n;"}.make(t)
	b := st.Leaderboard("run1")
	var text, packed bytes.Buffer
	if err := WriteCSV(&text, b); err != nil {
		t.Fatal(err)
	}
	if err := WriteParquet(&packed, b); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&text).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 13 {
		t.Fatalf("%d lines of CSV", len(rows))
	}
	f, err := parquet.OpenFile(bytes.NewReader(packed.Bytes()), int64(packed.Len()))
	if err != nil {
		t.Fatal(err)
	}
	names := f.Schema().Columns()
	if len(names) != len(rows[0]) || f.NumRows() != 12 {
		t.Fatalf("%d columns and %d rows of Parquet", len(names), f.NumRows())
	}
	col := map[string]int{}
	for i, n := range rows[0] {
		col[n] = i
	}
	r := parquet.NewReader(f)
	defer r.Close()
	for k := 1; ; k++ {
		one := make([]parquet.Row, 1)
		n, err := r.ReadRows(one)
		if n == 1 {
			for _, v := range one[0] {
				name := names[v.Column()][0]
				want := rows[k][col[name]]
				got := v.String()
				if v.IsNull() {
					got = ""
				} else if v.Kind() == parquet.Double {
					got = strconv.FormatFloat(v.Double(), 'g', -1, 64)
				}
				if got != want {
					t.Errorf("row %d, %s: %q in Parquet, %q in CSV", k, name, got, want)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range b.Trials[10:] {
		if e.Bits != nil {
			t.Error("the failed trials should come last")
		}
	}
	if got := rows[12][col["score"]]; got != "" {
		t.Errorf("a failed trial's score is %q", got)
	}
	if got := rows[1][col["params_muon_lr"]] + rows[2][col["params_muon_lr"]] + rows[3][col["params_muon_lr"]]; got == "" {
		t.Error("no trial has a muon_lr")
	}
}

func TestOptunaJSON(t *testing.T) {
	_, st := build{trials: 10, failed: 1, points: 4, final: true}.make(t)
	sp, err := space.Decoder(space.Limits{MaxVocab: 512, MaxContext: 512, Epochs: 9}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := WriteOptuna(&out, st, sp); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Direction string
		Trials    []struct {
			State         string
			Value         *float64
			Params        map[string]any
			Distributions map[string]struct{ Name string }
			Intermediate  map[string]float64 `json:"intermediate_values"`
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for _, tr := range got.Trials {
		states[tr.State]++
		if (tr.Value == nil) != (tr.State == "FAIL") || len(tr.Params) != len(tr.Distributions) {
			t.Errorf("%+v", tr)
		}
	}
	if got.Direction != "minimize" || len(got.Trials) != 10 || states["FAIL"] != 1 || states["PRUNED"]+states["COMPLETE"] != 9 {
		t.Errorf("%s, %v", got.Direction, states)
	}
	d := got.Trials[0].Distributions
	if d["lr"].Name != "FloatDistribution" || d["layers"].Name != "IntDistribution" || d["optimizer"].Name != "CategoricalDistribution" {
		t.Errorf("%v", d)
	}
}
