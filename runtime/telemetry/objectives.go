package telemetry

import (
	"fmt"
	"math"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// plotGoals is how trials stand in several objectives, and in what constraints bound.
type plotGoals struct {
	Names  []string     `json:"names"` // the score first
	Limits []number     `json:"limits"`
	Points []plotPoint  `json:"points"`
	Final  *plotPoint   `json:"final"`
	Volume []plotVolume `json:"volume"`
}

type plotPoint struct {
	ID     string   `json:"id"`
	Values []number `json:"values"`
	Text   []string `json:"text"`
	Rung   int      `json:"rung"`
	Mark   string   `json:"mark"` // knee, front, misses or nothing
}

// plotVolume is what was dominated after so many results.
type plotVolume struct {
	N     int    `json:"n"`
	Share number `json:"share"`
	ID    string `json:"id"`
}

// drawnIn is the unit of an objective's axis, and by how much it is smaller than that of
// its values.
func drawnIn(objective string) (string, float64) {
	switch objective {
	case job.Latency:
		return ", ms", 1e3
	case job.Energy:
		return ", mJ", 1e3
	case job.Memory, job.Size:
		return ", MB", 1 / job.Megabyte
	}
	return "", 1
}

// goals fills the section of several objectives and constraints.
func (p *page) goals(f *folder, shown []journal.Entry) {
	b, st := f.board, f.state
	columns := b.Columns()
	if len(columns) == 0 {
		return
	}
	names := append([]string{job.BitsPerByte}, columns...)
	g := &plotGoals{Limits: make([]number, len(names)), Points: []plotPoint{}}
	for i, n := range names {
		unit, scale := drawnIn(n)
		g.Names = append(g.Names, words(n)+unit)
		g.Limits[i] = number(math.NaN())
		for _, x := range st.Spec.Bounds() {
			if x.Objective == n {
				g.Limits[i] = number(scale * x.Limit)
				p.Bounds = append(p.Bounds, fmt.Sprintf("%s at most %s", words(n), job.Amount(n, x.Limit)))
			}
		}
	}
	point := func(e journal.Entry) plotPoint {
		q := plotPoint{ID: e.ID, Rung: e.Rung, Mark: e.Mark()}
		for _, n := range names {
			v := job.Value(n, *e.Bits, *e.Cost)
			_, scale := drawnIn(n)
			q.Values, q.Text = append(q.Values, number(scale*v)), append(q.Text, job.Amount(n, v))
		}
		return q
	}
	p.Several = len(b.Objectives) > 1
	for _, c := range columns {
		p.GoalNames = append(p.GoalNames, words(c))
	}
	p.Goals.Head = append(append([]string{"trial", words(job.BitsPerByte)}, p.GoalNames...), "rung", "mark")
	row := func(e journal.Entry, q plotPoint, rung string) []string {
		note := q.Mark
		if len(e.Misses) > 0 {
			note += ": " + strings.Join(e.Misses, ", ")
		}
		return append(append([]string{q.ID}, q.Text...), rung, note)
	}
	if e := b.Final; e != nil && e.Bits != nil && e.Cost != nil {
		q := point(*e)
		g.Final = &q
		p.Goals.Rows = append(p.Goals.Rows, row(*e, q, none))
		if len(e.Misses) > 0 {
			p.Misses = "The model misses a constraint: " + strings.Join(e.Misses, ", ") + "."
		}
	}
	for _, e := range shown {
		if e.Bits == nil || e.Cost == nil {
			continue
		}
		q := point(e)
		g.Points = append(g.Points, q)
		if e.Cost.EnergyBy != "" {
			p.EnergyBy = e.Cost.EnergyBy
		}
		if !p.Several || q.Mark == "front" || q.Mark == "knee" || e.ID == st.Winner {
			p.Goals.Rows = append(p.Goals.Rows, row(e, q, fmt.Sprint(e.Rung)))
		}
	}
	if p.Several {
		g.Volume = volumes(st)
		p.Volume.Head = []string{"results", "hypervolume", "last result of"}
		for _, v := range g.Volume {
			p.Volume.Rows = append(p.Volume.Rows, []string{fmt.Sprint(v.N), fmt.Sprintf("%.3f", float64(v.Share)), v.ID})
		}
	}
	p.plots.Goals = g
}

// beyond is by how much the worst of the trials lies inside of the reference point, as
// a share of the objectives' extents: the ends of a front count too.
const beyond = 0.1

// volumes is the hypervolume of what holds the constraints after each result, in the
// order of the decisions, as a share of the box between the best and the worst of each
// objective.
func volumes(st *journal.State) []plotVolume {
	type result struct {
		trial string
		at    []float64 // nil where it failed or misses a constraint
	}
	var results []result
	var low, high []float64
	for _, d := range st.Decisions {
		r, ended := st.Outcomes[d.Seq]
		if !ended {
			continue
		}
		o := r.Outcome(&st.Spec)
		x := result{trial: d.Trial}
		holds := len(o.Scores) > 0
		for _, v := range o.Violations {
			holds = holds && v <= 0
		}
		if holds {
			x.at = o.Scores
			if low == nil {
				low, high = append(low, o.Scores...), append(high, o.Scores...)
			}
			for k, v := range o.Scores {
				low[k], high[k] = min(low[k], v), max(high[k], v)
			}
		}
		results = append(results, x)
	}
	reference := make([]float64, len(low))
	box := 1.0
	for k := range reference {
		reference[k] = 1 + beyond
		box *= reference[k]
	}
	// The exact volume of many points in many dimensions takes long.
	most := 200
	if len(low) > 3 {
		most = 30
	}
	step := (len(results) + most - 1) / max(most, 1)
	var out []plotVolume
	at := map[string][]float64{}
	for i, r := range results {
		if r.at != nil {
			p := make([]float64, len(r.at))
			for k, v := range r.at {
				if high[k] > low[k] {
					p[k] = (v - low[k]) / (high[k] - low[k])
				}
			}
			at[r.trial] = p
		}
		if (i+1)%step != 0 && i+1 < len(results) {
			continue
		}
		var points, front [][]float64
		for _, id := range sortedKeys(at) {
			points = append(points, at[id])
		}
		for _, j := range search.Front(points) {
			front = append(front, points[j])
		}
		out = append(out, plotVolume{i + 1, number(search.Hypervolume(front, reference) / box), r.trial})
	}
	return out
}
