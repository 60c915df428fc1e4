package telemetry

import (
	"fmt"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/journal"
)

// The plots of a search as a whole: what parameters do together, how scores are
// distributed, and when each trial ran.

// plotPair is an interaction by axis; A and B are equal for what one does alone.
type plotPair struct {
	A     int    `json:"a"`
	B     int    `json:"b"`
	Share number `json:"share"`
}

// plotSpan is a piece of a trial's training on the job's clock.
type plotSpan struct {
	ID     string `json:"id"`
	Rung   int    `json:"rung"` // −1 is the final training
	From   number `json:"from"`
	To     number `json:"to"`
	Failed bool   `json:"failed"`
}

// maxTogether is how many interactions the table lists.
const maxTogether = 10

// together fills the plots of effects alone and together, and of what the model of the
// scores expects. Call it after trials and Importance.
func (p *page) together() {
	if p.model == nil {
		return
	}
	axes := p.plots.Axes
	at := func(name string) int {
		return slices.IndexFunc(axes, func(a plotAxis) bool { return a.column == name })
	}
	p.Anova.Head = []string{"parameters", "share of the model's variance"}
	for j, n := range p.model.names {
		if a := at(n); a >= 0 {
			p.plots.Anova = append(p.plots.Anova, plotPair{a, a, number(p.alone[j])})
		}
	}
	rows := p.Together
	for _, t := range rows {
		if a, b := at(t.A), at(t.B); a >= 0 && b >= 0 {
			p.plots.Anova = append(p.plots.Anova, plotPair{a, b, number(t.Share)})
		}
	}
	alone := slices.Clone(p.Effects)
	slices.SortStableFunc(alone, func(a, b Effect) int {
		switch {
		case a.Alone > b.Alone:
			return -1
		case a.Alone < b.Alone:
			return 1
		}
		return 0
	})
	for _, e := range alone {
		p.Anova.Rows = append(p.Anova.Rows, []string{words(e.Name) + " alone", fmt.Sprintf("%.3f", e.Alone)})
	}
	for _, t := range rows[:min(len(rows), maxTogether)] {
		p.Anova.Rows = append(p.Anova.Rows, []string{words(t.A) + " with " + words(t.B), fmt.Sprintf("%.3f", t.Share)})
	}
	p.plots.Contours = p.model.contours(axes, p.alone, p.pairs)
	for _, c := range p.plots.Contours {
		p.Contours = append(p.Contours, axes[c.A].Name+" and "+axes[c.B].Name)
	}
}

// distribution tells of each rung's scores.
func (p *page) distribution(entries []journal.Entry) {
	byRung := map[int][]float64{}
	for _, e := range entries {
		if e.Bits != nil {
			byRung[e.Rung] = append(byRung[e.Rung], *e.Bits)
		}
	}
	p.Distribution.Head = []string{"rung", "trials", "best", "a quarter is below", "half is below", "three quarters are below", "worst"}
	for _, r := range sortedKeys(byRung) {
		s := byRung[r]
		slices.Sort(s)
		row := []string{fmt.Sprint(r), fmt.Sprint(len(s)), bits(s[0])}
		for _, q := range []int{1, 2, 3} {
			row = append(row, bits(s[(len(s)-1)*q/4]))
		}
		p.Distribution.Rows = append(p.Distribution.Rows, append(row, bits(s[len(s)-1])))
	}
}

// timeline tells when each of the shown trials ran.
func (p *page) timeline(st *journal.State, shown []journal.Entry) {
	has := map[string]bool{}
	for _, e := range shown {
		has[e.ID] = true
	}
	p.Timeline.Head = []string{"trial", "rung", "from", "to", "took"}
	add := func(s plotSpan, span journal.Span) {
		if span.To == 0 {
			span.To = st.Active
		}
		if span.To < span.From || len(p.plots.Spans) >= maxSpans {
			return
		}
		s.From, s.To = number(span.From), number(span.To)
		p.plots.Spans = append(p.plots.Spans, s)
		rung := fmt.Sprint(s.Rung)
		if s.Rung < 0 {
			rung = none
		}
		p.Timeline.Rows = append(p.Timeline.Rows, []string{s.ID, rung, seconds(span.From), seconds(span.To), seconds(span.To - span.From)})
	}
	if st.Winner != "" { // first: it may not be left out
		if span, ok := st.Spans[-1]; ok {
			add(plotSpan{ID: finalID, Rung: -1}, span)
		}
	}
	for _, d := range st.Decisions {
		if span, ok := st.Spans[d.Seq]; ok && has[d.Trial] {
			add(plotSpan{ID: d.Trial, Rung: d.Rung, Failed: st.Outcomes[d.Seq].Failed}, span)
		}
	}
}

// orders tells when the search was steered, and how.
func (p *page) orders(st *journal.State) {
	p.Orders.Head = []string{"at", "order", "by", "first decision under it"}
	for i, o := range st.Orders {
		by := none
		if o.By != "" {
			by = o.By
		}
		p.Orders.Rows = append(p.Orders.Rows, []string{seconds(st.OrderedAt[i]), clip(o.String(), 400), clip(by, 100), fmt.Sprint(o.Before)})
	}
}

// maxSpans bounds the pieces of the timeline.
const maxSpans = 400
