package search

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Heir is a model that the final training may train: the winner as it is, or one that its
// weights are grown into.
type Heir struct {
	Config space.Config `json:"config"`
	Params int64        `json:"params"` // of its matrices
	Text   float64      `json:"text"`   // bytes that the budget lets it read
	Score  float64      `json:"score"`  // foretold
	Better float64      `json:"better"` // share of the law's draws in which it ends better than the winner as it is, by more than Sizing.Gain
}

// Sizing says which model the final training trains, and why. It is made once and kept in
// the journal.
type Sizing struct {
	Law    Law        `json:"law"`
	Noise  float64    `json:"noise"`            // between trials of one size, as a share of the score
	Gain   float64    `json:"gain"`             // likewise, what the trials can tell apart: the noise in their mean
	Points []LawPoint `json:"points,omitempty"` // that the law was fitted to, without those before the rate fell
	Heirs  []Heir     `json:"heirs"`            // the winner as it is, then larger ones, the best foretold first
	Taken  int        `json:"taken"`            // of Heirs
	Why    string     `json:"why"`
}

// Grown is the model that the winner is grown into, nil where it is trained as it is.
func (s *Sizing) Grown() *Heir {
	if s == nil || s.Taken <= 0 || s.Taken >= len(s.Heirs) {
		return nil
	}
	return &s.Heirs[s.Taken]
}

// What a larger model has to show.
const (
	leastSure   = 0.8 // share of the draws
	leastTrials = 4   //
	leastApart  = 1.2 // largest over smallest size
	shownHeirs  = 12  //
)

// Standing is where the winner stands when the search is over.
type Standing struct {
	Score  float64 // of its last rung
	Scored float64 // bytes that it had read then
	Read   float64 // bytes that it had read at the checkpoint that the final training goes on from
	Unique float64 // bytes of the text
}

// Choose decides which of the heirs is trained, the first of which is the winner as it
// is. A grown model begins where its parent stands, which it would have reached after
// less text of its own.
func (l Laws) Choose(w Standing, heirs []Heir) Sizing {
	trials := map[string]bool{}
	out := Sizing{Law: l.Law, Noise: l.Noise, Heirs: slices.Clone(heirs)}
	small, large := math.Inf(1), 0.0
	for _, p := range l.Points {
		trials[p.Trial] = true
		small, large = min(small, p.Params), max(large, p.Params)
		if !p.Warm {
			out.Points = append(out.Points, p)
		}
	}
	out.Gain = max(leastNoise, l.Noise/math.Sqrt(float64(max(len(trials), 1))))
	ends := func(law Law, h Heir) float64 {
		first, head := float64(heirs[0].Params), Effective(w.Read, w.Unique)
		if n := float64(h.Params); n != first {
			head = min(head, law.TextFor(n, law.Score(first, head)))
		}
		return law.Score(float64(h.Params), Effective(head+h.Text, w.Unique))
	}
	scale := w.Score / l.Law.Score(float64(heirs[0].Params), Effective(w.Scored, w.Unique))
	for i := range out.Heirs {
		h := &out.Heirs[i]
		h.Score = scale * ends(l.Law, *h)
		for _, d := range l.Draws {
			if ends(d, *h) < (1-out.Gain)*ends(d, heirs[0]) {
				h.Better += 1 / float64(len(l.Draws))
			}
		}
	}
	rest := out.Heirs[1:]
	slices.SortStableFunc(rest, func(a, b Heir) int { return cmp.Or(cmp.Compare(a.Score, b.Score), cmp.Compare(a.Params, b.Params)) })
	sure := slices.IndexFunc(rest, func(h Heir) bool { return h.Better >= leastSure })
	asItIs := out.Heirs[0]
	switch {
	case len(rest) == 0:
		out.Why = "trained as it is: the job's space and constraints allow no larger model"
	case len(trials) < leastTrials:
		out.Why = fmt.Sprintf("trained as it is: %d trials with a score are too few for a law", len(trials))
	case large < leastApart*small:
		out.Why = "trained as it is: all trials are of about one size, which says nothing of others"
	case sure < 0:
		out.Why = fmt.Sprintf("trained as it is, to about %.3f bits per byte: grown to %.2f M parameters it is foretold %.3f, better by more than noise in %.0f %% of the law's draws, and %.0f %% are asked for",
			asItIs.Score, millions(rest[0]), rest[0].Score, 100*rest[0].Better, 100*leastSure)
	default:
		out.Taken = sure + 1
		h := rest[sure]
		out.Why = fmt.Sprintf("grown from %.2f M to %.2f M parameters: foretold %.3f bits per byte instead of %.3f, better by more than noise in %.0f %% of the law's draws",
			millions(asItIs), millions(h), h.Score, asItIs.Score, 100*h.Better)
	}
	if len(out.Heirs) > shownHeirs && out.Taken < shownHeirs {
		out.Heirs = out.Heirs[:shownHeirs]
	}
	return out
}

func millions(h Heir) float64 { return float64(h.Params) / 1e6 }
