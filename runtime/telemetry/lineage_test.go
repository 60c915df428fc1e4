package telemetry

import (
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// A population's report says who went on from whom, and how the best was trained.
func TestLineage(t *testing.T) {
	entry := func(id, parent string, at, lr float64) journal.Entry {
		return journal.Entry{ID: id, Parent: parent, ForkedAt: at, Config: space.Config{space.LR: space.Number(lr), space.Dim: space.Number(64), space.Decay: space.Number(0.1)}}
	}
	entries := []journal.Entry{entry("t005", "t003", 2000, 0.3), entry("t001", "", 0, 0.1), entry("t003", "t001", 1000, 0.2), entry("t004", "t001", 1000, 0.4)}
	var p page
	p.lineage(entries, &search.Plan{Unit: search.Tokens}, 10)
	var lines []string
	for _, r := range append(p.Lineage.Rows, p.Schedule.Rows...) {
		lines = append(lines, strings.Join(r, "|"))
	}
	want := "t005|–|t001 at 1000 tokens → t003 at 2000 tokens → t005\nt004|–|t001 at 1000 tokens → t004\n0 tokens|t001|0.1\n1000 tokens|t003|0.2\n2000 tokens|t005|0.3"
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
	for _, odd := range [][]journal.Entry{entries[1:2], {entry("t001", "t002", 1, 1), entry("t002", "t001", 1, 1)}, {entry("t001", "gone", 1, 1)}} {
		new(page).lineage(odd, &search.Plan{}, 10) // does not hang
	}
}
