package telemetry

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// maxLawPoints bounds the table beside the law.
const maxLawPoints = 400

// sizing tells what the law of size and text says of the models that the final training
// could have been of.
func (p *page) sizing(z *search.Sizing) {
	if z == nil || len(z.Heirs) == 0 {
		return
	}
	p.Choices = append(p.Choices, "Final training: "+clip(z.Why, 400)+".")
	l := z.Law
	p.Law = fmt.Sprintf("bits per byte = %s + %s·(N/%s)^−%.2f + %s·(D/%s)^−%.2f for N parameters in matrices and D bytes of text, of which what is read again and again counts for less; between trials of one size scores differ by about %.1f %%",
		short(l.E), short(l.A), size(int64(l.N0)), l.Alpha, short(l.B), size(int64(l.D0)), l.Beta, 100*z.Noise)
	p.Heirs.Head = []string{"model", "dim", "layers", "parameters in matrices", "text that the budget lets it read", "foretold bits per byte", "better by more than noise, of the law's draws", ""}
	for i, h := range z.Heirs {
		name, sure, taken := "grown", fmt.Sprintf("%.0f %%", 100*h.Better), ""
		if i == 0 {
			name, sure = "the winner as it is", none
		}
		if i == z.Taken {
			taken = "taken"
		}
		p.Heirs.Rows = append(p.Heirs.Rows, []string{name, value(h.Config[space.Dim]), value(h.Config[space.Layers]), size(h.Params), size(int64(h.Text)), bits(h.Score), sure, taken})
	}
	points := slices.Clone(z.Points)
	slices.SortStableFunc(points, func(a, b search.LawPoint) int { return cmp.Compare(a.Score, b.Score) })
	p.LawPoints.Head = []string{"trial", "parameters in matrices", "text", "score", "by the law"}
	for _, q := range points[:min(len(points), maxLawPoints)] {
		p.LawPoints.Rows = append(p.LawPoints.Rows, []string{q.Trial, size(int64(q.Params)), size(int64(q.Text)), bits(q.Score), bits(l.Score(q.Params, q.Text))})
	}
}
