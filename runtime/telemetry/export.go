package telemetry

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/parquet-go/parquet-go"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Trials as tables of other programs.

// column is one of a table of trials. A cell is a string, an int64, a float64, or nil
// where a trial has no such value.
type column struct {
	name string
	kind parquet.Node
	cell func(e journal.Entry) any
}

// columns of a leaderboard's trials: what is known of each, then its parameters under
// "params_" and their names, as pandas users know it. A parameter that is a word in one
// trial is one in all.
func columns(b journal.Leaderboard) []column {
	text, whole, real := parquet.String(), parquet.Leaf(parquet.Int64Type), parquet.Leaf(parquet.DoubleType)
	score := func(x *float64) any {
		if x == nil || math.IsNaN(*x) || math.IsInf(*x, 0) {
			return nil
		}
		return *x
	}
	out := []column{
		{"trial", text, func(e journal.Entry) any { return e.ID }},
		{"status", text, func(e journal.Entry) any { return e.Status }},
		{"score", real, func(e journal.Entry) any { return score(e.Score) }},
		{"bits_per_byte", real, func(e journal.Entry) any { return score(e.Bits) }},
		{"rung", whole, func(e journal.Entry) any { return int64(e.Rung) }},
		{"model_params", whole, func(e journal.Entry) any { return e.Params }},
		{"steps", whole, func(e journal.Entry) any { return int64(e.Steps) }},
		{"tokens", whole, func(e journal.Entry) any { return e.Tokens }},
		{"seconds", real, func(e journal.Entry) any { return e.Seconds }},
		{"tokens_per_s", real, func(e journal.Entry) any { return e.PerSecond }},
		{"parent", text, func(e journal.Entry) any { return e.Parent }},
		{"forked_at", real, func(e journal.Entry) any { return e.ForkedAt }},
		{"reason", text, func(e journal.Entry) any { return e.Reason }},
	}
	if slices.ContainsFunc(b.Trials, func(e journal.Entry) bool { return e.Cost != nil }) {
		cost := func(name string, of func(c *train.Cost) float64) column {
			return column{name, real, func(e journal.Entry) any {
				if e.Cost == nil || of(e.Cost) == 0 {
					return nil
				}
				return of(e.Cost)
			}}
		}
		out = append(
			out,
			cost("latency_s", func(c *train.Cost) float64 { return c.Latency }),
			cost("memory_bytes", func(c *train.Cost) float64 { return float64(c.Memory) }),
			cost("size_bytes", func(c *train.Cost) float64 { return float64(c.Size) }),
			cost("energy_j", func(c *train.Cost) float64 { return c.Energy }),
			column{"task_error", real, func(e journal.Entry) any {
				if e.Cost == nil || e.Cost.Error == nil {
					return nil
				}
				return *e.Cost.Error
			}},
			column{"mark", text, func(e journal.Entry) any { return e.Mark() }},
			column{"misses", text, func(e journal.Entry) any { return strings.Join(e.Misses, "; ") }},
		)
	}
	word := map[string]bool{}
	for _, e := range b.Trials {
		for n, v := range e.Config {
			word[n] = word[n] || v.IsWord()
		}
	}
	for _, n := range sortedKeys(word) {
		c := column{"params_" + n, real, func(e journal.Entry) any {
			if v, ok := e.Config[n]; ok {
				return v.Num
			}
			return nil
		}}
		if word[n] {
			c.kind, c.cell = text, func(e journal.Entry) any {
				if v, ok := e.Config[n]; ok {
					return v.String()
				}
				return nil
			}
		}
		out = append(out, c)
	}
	return out
}

// WriteCSV writes the trials of a leaderboard, best first, a line each after one of
// names.
func WriteCSV(w io.Writer, b journal.Leaderboard) error {
	out := csv.NewWriter(w)
	cols := columns(b)
	row := make([]string, len(cols))
	for i, c := range cols {
		row[i] = c.name
	}
	if err := out.Write(row); err != nil {
		return err
	}
	for _, e := range b.Trials {
		for i, c := range cols {
			switch v := c.cell(e).(type) {
			case string:
				row[i] = v
			case int64:
				row[i] = strconv.FormatInt(v, 10)
			case float64:
				row[i] = strconv.FormatFloat(v, 'g', -1, 64)
			default:
				row[i] = ""
			}
		}
		if err := out.Write(row); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// WriteParquet writes the same table as Parquet.
func WriteParquet(w io.Writer, b journal.Leaderboard) error {
	cols := columns(b)
	slices.SortFunc(cols, func(a, b column) int { // as a group's fields are
		if a.name < b.name {
			return -1
		}
		return 1
	})
	group := parquet.Group{}
	for _, c := range cols {
		group[c.name] = parquet.Optional(c.kind)
	}
	out := parquet.NewWriter(w, parquet.NewSchema("trial", group))
	for _, e := range b.Trials {
		var row parquet.Row
		for i, c := range cols {
			if v := c.cell(e); v != nil {
				row = append(row, parquet.ValueOf(v).Level(0, 1, i))
			} else {
				row = append(row, parquet.NullValue().Level(0, 0, i))
			}
		}
		if _, err := out.WriteRows([]parquet.Row{row}); err != nil {
			return err
		}
	}
	return out.Close()
}

// optunaTrial holds the arguments of Optuna's create_trial, but that the keys of
// intermediate values are texts and distributions are objects.
type optunaTrial struct {
	State         string                        `json:"state"`
	Value         *float64                      `json:"value"`
	Values        []float64                     `json:"values,omitempty"` // of several objectives, in Value's place
	Params        space.Config                  `json:"params"`
	Distributions map[string]optunaDistribution `json:"distributions"`
	Attributes    map[string]any                `json:"user_attrs"`
	Intermediate  map[string]float64            `json:"intermediate_values"`
}

type optunaDistribution struct {
	Name       string         `json:"name"`
	Attributes map[string]any `json:"attributes"`
}

// WriteOptuna writes the trials that have ended as JSON that Optuna's users load with a
// few lines of Python: see autoglm trials --help. Trials that were stopped early are
// PRUNED; each rung's score is an intermediate value at its step. Of several objectives all
// trials that have a score are COMPLETE, since Optuna prunes by one alone.
func WriteOptuna(w io.Writer, st *journal.State, sp *space.Space) error {
	out := struct {
		Direction  string        `json:"direction,omitempty"`
		Directions []string      `json:"directions,omitempty"`
		Objectives []string      `json:"objectives,omitempty"`
		Trials     []optunaTrial `json:"trials"`
	}{Direction: "minimize", Trials: []optunaTrial{}}
	lb := st.Leaderboard("")
	if out.Objectives = lb.Objectives; len(out.Objectives) > 0 {
		out.Direction, out.Directions = "", slices.Repeat([]string{"minimize"}, len(out.Objectives))
	}
	for _, e := range lb.Trials {
		t := optunaTrial{
			Value: e.Score, Params: e.Config, Distributions: map[string]optunaDistribution{}, Intermediate: map[string]float64{},
			Attributes: map[string]any{"trial": e.ID, "params": e.Params, "tokens": e.Tokens, "seconds": e.Seconds, "reason": e.Reason, "parent": e.Parent},
		}
		switch e.Status {
		case "finished":
			t.State = "COMPLETE"
		case "stopped":
			t.State = "PRUNED"
		case "failed":
			t.State, t.Value = "FAIL", nil
		default:
			continue
		}
		if len(out.Objectives) > 0 {
			t.State, t.Value, t.Values = "COMPLETE", nil, lb.Points(e)
			if e.Status == "failed" || t.Values == nil {
				t.State, t.Values = "FAIL", nil
			}
			t.Attributes["mark"], t.Attributes["misses"] = e.Mark(), e.Misses
		}
		for _, d := range st.Decisions {
			if r, ended := st.Outcomes[d.Seq]; ended && d.Trial == e.ID && !r.Failed {
				t.Intermediate[strconv.Itoa(r.State.Step)] = r.Bits
			}
		}
		for _, d := range sp.Dimensions() {
			if _, has := e.Config[d.Name]; has {
				t.Distributions[d.Name] = distribution(d)
			}
		}
		out.Trials = append(out.Trials, t)
	}
	return json.NewEncoder(w).Encode(out)
}

func distribution(d space.Dimension) optunaDistribution {
	switch d.Kind {
	case space.Uniform, space.LogUniform:
		return optunaDistribution{"FloatDistribution", map[string]any{"low": d.Low, "high": d.High, "log": d.Kind == space.LogUniform, "step": nil}}
	case space.Int, space.LogInt:
		step := max(d.Step, 1)
		return optunaDistribution{"IntDistribution", map[string]any{"low": d.Low, "high": d.High, "log": d.Kind == space.LogInt, "step": step}}
	}
	return optunaDistribution{"CategoricalDistribution", map[string]any{"choices": d.Choices}}
}
