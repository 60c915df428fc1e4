package telemetry

import (
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// line is a trial's forefathers, the first of them first, and itself.
func line(byID map[string]journal.Entry, id string) []journal.Entry {
	var out []journal.Entry
	for range len(byID) { // a damaged leaderboard may go round in a circle
		e, ok := byID[id]
		if !ok {
			break
		}
		out = append(out, e)
		if e.ForkedAt == 0 {
			break
		}
		id = e.Parent
	}
	slices.Reverse(out)
	return out
}

// lineage tells of a population which trials went on from which, and with what parameters
// the best one was trained one after the other.
func (p *page) lineage(entries []journal.Entry, pl *search.Plan, rows int) {
	byID, parents, forked := map[string]journal.Entry{}, map[string]bool{}, false
	for _, e := range entries {
		byID[e.ID] = e
		if e.ForkedAt > 0 {
			forked = true
			parents[e.Parent] = true
		}
	}
	if !forked || pl == nil {
		return
	}
	p.Lineage.Head = []string{"trial", "bits per byte", "goes on from"}
	for _, e := range entries {
		var steps []string
		for i, a := range line(byID, e.ID) {
			if i > 0 {
				steps = append(steps, "at "+resource(pl, a.ForkedAt)+" → "+a.ID)
			} else {
				steps = append(steps, a.ID)
			}
		}
		if len(steps) > 1 && !parents[e.ID] && len(p.Lineage.Rows) < rows {
			p.Lineage.Rows = append(p.Lineage.Rows, []string{e.ID, bits(bitsOf(e)), strings.Join(steps, " ")})
		}
	}
	best := line(byID, entries[0].ID)
	var names []string
	for _, n := range sortedKeys(best[0].Config) {
		if !space.IsArchitecture(n) && slices.ContainsFunc(best, func(e journal.Entry) bool { return e.Config[n] != best[0].Config[n] }) {
			names = append(names, n)
		}
	}
	p.Schedule.Head = []string{"from", "as trial"}
	for _, n := range names {
		p.Schedule.Head = append(p.Schedule.Head, words(n))
	}
	for _, e := range best {
		row := []string{resource(pl, e.ForkedAt), e.ID}
		for _, n := range names {
			row = append(row, value(e.Config[n]))
		}
		p.Schedule.Rows = append(p.Schedule.Rows, row)
	}
}
