package telemetry

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Scored is a trial's configuration and a score that compares with the others':
// lower is better.
type Scored struct {
	Config space.Config
	Score  float64
}

// Effect is what one parameter did to the scores.
type Effect struct {
	Name   string  `json:"name"`
	Share  float64 `json:"share"`  // growth of the squared error of unseen trials when it is shuffled, over the scores' variance
	Chance float64 `json:"chance"` // the share that meaningless scores reach one time in twenty
	Above  bool    `json:"above"`
	Alone  float64 `json:"alone"` // share of the variance of the model of the scores, see Interaction
}

// Importance says which parameters the scores depend on, and how far that can
// be believed.
type Importance struct {
	Trials  int      // with a score
	R2      float64  // of a random forest on trials that it has not seen
	Effects []Effect // largest first; none when there are too few trials
	Words   string   // what may be read from it
	// Together lists pairs of parameters, the largest interactions first.
	Together []Interaction

	model *surrogate // nil where there are no effects
	alone []float64  // by the model's names
	pairs [][]float64
}

const (
	minImportance = 6   // trials
	weakTrials    = 24  // fewer are called few
	maxForestRows = 200 // a random choice of more
	forestTrees   = 64
	shuffles      = 59
)

// MeasureImportance fits a random forest to the scores and shuffles one
// parameter after the other in the trials that a tree has not seen (Breiman
// 2001). The same is done with the scores themselves shuffled, which gives the
// level of chance. It is deterministic in its arguments.
func MeasureImportance(trials []Scored, seed uint64) Importance {
	rng := rand.New(rand.NewPCG(seed, 0x1a9))
	trials = slices.DeleteFunc(slices.Clone(trials), func(t Scored) bool { return math.IsNaN(t.Score) || math.IsInf(t.Score, 0) })
	im := Importance{Trials: len(trials)}
	if im.Trials < minImportance {
		im.Words = fmt.Sprintf("%s a score; at least %d are needed to say anything about which parameter matters.", count(im.Trials, "trial has", "trials have"), minImportance)
		return im
	}
	if len(trials) > maxForestRows {
		rng.Shuffle(len(trials), func(i, j int) { trials[i], trials[j] = trials[j], trials[i] })
		trials = trials[:maxForestRows]
	}
	names, f, words := encode(trials)
	y := make([]float64, len(trials))
	for i, t := range trials {
		y[i] = t.Score
	}
	clipWorst(y)
	if len(names) == 0 || spread(y) == 0 {
		im.Words = "All trials have the same configuration or the same score: there is nothing to compare."
		return im
	}
	im.model = &surrogate{names, f, words, grow(f, y, forestTrees, rng)}
	share, r2 := im.model.forest.permute(f, y, rng)
	im.R2 = r2
	im.alone, im.pairs = im.model.forest.anova(f)
	for j := range names {
		for k := j + 1; k < len(names); k++ {
			im.Together = append(im.Together, Interaction{names[j], names[k], im.pairs[j][k]})
		}
	}
	slices.SortStableFunc(im.Together, func(a, b Interaction) int { return -cmp.Compare(a.Share, b.Share) })
	chance := make([][]float64, len(names))
	for range shuffles {
		rng.Shuffle(len(y), func(i, j int) { y[i], y[j] = y[j], y[i] })
		s, _ := grow(f, y, forestTrees/2, rng).permute(f, y, rng)
		for j := range s {
			chance[j] = append(chance[j], s[j])
		}
	}
	for j, n := range names {
		slices.Sort(chance[j])
		e := Effect{Name: n, Share: max(share[j], 0), Chance: max(chance[j][shuffles*95/100], 0), Alone: im.alone[j]}
		e.Above = share[j] > e.Chance
		im.Effects = append(im.Effects, e)
	}
	slices.SortStableFunc(im.Effects, func(a, b Effect) int { return cmp.Or(-cmp.Compare(a.Share, b.Share), cmp.Compare(a.Name, b.Name)) })
	im.Words = im.words()
	return im
}

func (im Importance) words() string {
	above := 0
	for _, e := range im.Effects {
		if e.Above {
			above++
		}
	}
	expected := float64(len(im.Effects)) / 20
	tail := fmt.Sprintf(" %s above the level of chance, where about %.1f would be by luck alone.", count(above, "parameter stands", "parameters stand"), expected)
	switch {
	case im.R2 <= 0:
		return fmt.Sprintf("%d trials do not suffice: a model of their scores predicts a trial that it has not seen no better than the mean does. Take the bars as a hint at most.", im.Trials) + tail
	case im.Trials < weakTrials:
		return fmt.Sprintf("%d trials are few: a model of their scores explains %.0f %% of what sets unseen trials apart. Another search may order the bars differently.", im.Trials, 100*im.R2) + tail
	}
	return fmt.Sprintf("A model of the scores of %d trials explains %.0f %% of what sets unseen trials apart.", im.Trials, 100*im.R2) + tail
}

// clipWorst cuts the worst scores to one and a half interquartile ranges above
// the upper quartile, so that a trial that went wrong does not decide alone.
func clipWorst(y []float64) {
	s := slices.Clone(y)
	slices.Sort(s)
	q1, q3 := s[len(s)/4], s[len(s)*3/4]
	if top := q3 + 1.5*(q3-q1); top > q1 {
		for i := range y {
			y[i] = min(y[i], top)
		}
	}
}

// encode lays the parameters that differ between trials out as columns.
func encode(trials []Scored) ([]string, features, []map[string]float64) {
	configs := make([]space.Config, len(trials))
	for i, t := range trials {
		configs[i] = t.Config
	}
	names := varying(configs)
	f := features{x: make([][]float64, len(trials)), categorical: make([]bool, len(names))}
	for i := range f.x {
		f.x[i] = make([]float64, len(names))
	}
	words := make([]map[string]float64, len(names))
	for j, n := range names {
		for _, c := range configs {
			if v, ok := c[n]; ok && v.IsWord() {
				f.categorical[j] = true
			}
		}
		if f.categorical[j] {
			words[j] = codes(configs, n)
		}
		for i, c := range configs {
			v, ok := c[n]
			switch {
			case !ok && f.categorical[j]:
				f.x[i][j] = -1
			case !ok:
				f.x[i][j] = math.Inf(-1) // below every number
			case f.categorical[j]:
				f.x[i][j] = words[j][v.String()]
			default:
				f.x[i][j] = v.Num
			}
		}
	}
	finite(f)
	return names, f, words
}

// finite replaces −Inf by a number below the column's others, so that the middle
// between two values is a number.
func finite(f features) {
	for j := range f.categorical {
		low := math.Inf(1)
		for _, row := range f.x {
			if !math.IsInf(row[j], -1) {
				low = min(low, row[j])
			}
		}
		for _, row := range f.x {
			if math.IsInf(row[j], -1) {
				row[j] = low - 1 - math.Abs(low)
			}
		}
	}
}

// varying lists the parameters that have more than one value (being absent is
// one), in alphabetical order.
func varying(configs []space.Config) []string {
	values := map[string]map[string]int{}
	for _, c := range configs {
		for n, v := range c {
			if values[n] == nil {
				values[n] = map[string]int{}
			}
			values[n][v.String()]++
		}
	}
	var out []string
	for n, m := range values {
		times := 0
		for _, k := range m {
			times += k
		}
		if len(m) > 1 || times < len(configs) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// comparable gives each trial's score at the first rung it reported from, where
// all trials of a bracket had the same resource, less the bracket's mean.
func comparable(st *journal.State, board journal.Leaderboard) []Scored {
	type first struct {
		bracket int
		score   Scored
	}
	var order []string
	firsts := map[string]first{}
	if st != nil {
		for _, d := range st.Decisions {
			r, ended := st.Outcomes[d.Seq]
			if _, seen := firsts[d.Trial]; seen || !ended || r.Failed || d.Rung != 0 {
				continue
			}
			firsts[d.Trial] = first{d.Bracket, Scored{d.Config, r.Bits}}
			order = append(order, d.Trial)
		}
	}
	if len(order) == 0 {
		var out []Scored
		for _, e := range board.Trials {
			if e.Bits != nil {
				out = append(out, Scored{e.Config, *e.Bits})
			}
		}
		return out
	}
	sum, n := map[int]float64{}, map[int]float64{}
	for _, id := range order {
		f := firsts[id]
		sum[f.bracket] += f.score.Score
		n[f.bracket]++
	}
	var out []Scored
	for _, id := range order {
		f := firsts[id]
		f.score.Score -= sum[f.bracket] / n[f.bracket]
		out = append(out, f.score)
	}
	return out
}
