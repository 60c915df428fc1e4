package data

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

type dirtyItem struct {
	Line  int64  `json:"line"`
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Of    string `json:"of"`
	Clean string `json:"clean_text"`
}

func readDirty(t *testing.T, name string) (int, []dirtyItem) {
	t.Helper()
	b, err := os.ReadFile(testdataFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Lines int         `json:"lines"`
		Items []dirtyItem `json:"items"`
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d.Lines, d.Items
}

func readDropped(t *testing.T, dir string) map[int64]DroppedRow {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "dropped.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	out := map[int64]DroppedRow{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var d DroppedRow
		if err := json.Unmarshal(sc.Bytes(), &d); err != nil {
			t.Fatal(err)
		}
		out[d.Line] = d
	}
	return out
}

// score counts true positives, false positives and misses.
type score struct{ tp, fp, fn int }

func (s score) recall() float64    { return float64(s.tp) / max(1, float64(s.tp+s.fn)) }
func (s score) precision() float64 { return float64(s.tp) / max(1, float64(s.tp+s.fp)) }

// TestDirtyText measures precision and recall of every rule on labelled dirt.
func TestDirtyText(t *testing.T) {
	_, items := readDirty(t, "dirty/dirty.expected.json")
	r, dir := prepare(t, config(testdataFile(t, "dirty/dirty.jsonl")))
	dropped := readDropped(t, dir)

	// copies: of a row and its copies, whichever comes first may stay; the near
	// duplicate of a row that is itself gone may stay too
	family := func(it dirtyItem) string {
		if it.Of != "" {
			return it.Of
		}
		return it.ID
	}
	copies := map[string]bool{"duplicate_line": true, "duplicate_text": true, "duplicate_normalised": true, "near_duplicate": true}
	members, gone, related := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, it := range items {
		if copies[it.Kind] || it.Kind == "encoding_gb18030" { // the latter is a prefix of its row
			members[it.Of]++
			related[it.Of] = true
		}
	}
	rules := map[string]Rule{
		"broken_utf8": RuleEncoding, "empty_text": RuleEmpty, "gibberish": RuleGibberish, "invalid_json": RuleUnparsable,
		"missing_text": RuleMissing, "null_text": RuleMissing, "repetition": RuleRepetition, "too_short": RuleTooShort, "wrong_type": RuleWrongType,
	}
	kinds := map[string]*score{}
	at := func(k string) *score {
		if kinds[k] == nil {
			kinds[k] = &score{}
		}
		return kinds[k]
	}
	var clean, kept int
	for _, it := range items {
		d, isGone := dropped[it.Line]
		isDup := isGone && (d.Rule == RuleExact || d.Rule == RuleNear)
		if isDup && members[family(it)] > 0 {
			gone[family(it)]++
		}
		switch rule, ok := rules[it.Kind]; {
		case ok:
			// rows of these kinds may equal one another
			if isGone && (d.Rule == rule || isDup) {
				at(it.Kind).tp++
			} else {
				at(it.Kind).fn++
				t.Logf("line %d, %s: got %q", it.Line, it.Kind, d.Rule)
			}
		case it.Kind == "blank_line", copies[it.Kind]:
		default: // worth keeping
			clean++
			switch {
			case !isGone:
				kept++
			case isDup && members[family(it)] > 0:
				kept++ // a copy of it stays
			case isDup && it.Kind[:4] == "enco":
				kept++ // the same sentence drawn twice
			default:
				at("("+string(d.Rule)+")").fp++
				t.Logf("line %d, %s: dropped as %s %s of %s", it.Line, it.Kind, d.Rule, d.Note, d.Of)
			}
		}
	}
	dup := score{}
	for _, it := range items {
		if it.Kind == "encoding_gb18030" {
			if d, ok := dropped[it.Line]; ok && d.Rule != RuleNear {
				t.Errorf("line %d, gb18030: dropped as %s", it.Line, d.Rule)
			}
			members[it.Of]-- // long rows are not near their prefix: no duty, no fault
			gone[it.Of] = min(gone[it.Of], members[it.Of])
		}
	}
	for f, n := range members {
		dup.tp += min(gone[f], n)
		dup.fn += max(0, n-gone[f])
		dup.fp += max(0, gone[f]-n)
	}
	t.Logf("duplicates of all kinds: recall %.3f precision %.3f", dup.recall(), dup.precision())
	near := score{}
	for _, it := range items {
		d := dropped[it.Line]
		if it.Kind == "near_duplicate" {
			// the original may stand later and be the one that went
			if d.Rule == RuleNear || gone[it.Of] >= members[it.Of] {
				near.tp++
			} else {
				near.fn++
			}
		} else if d.Rule == RuleNear && !related[family(it)] && it.Kind[:4] != "enco" {
			near.fp++
		}
	}
	t.Logf("near duplicates: recall %.3f precision %.3f", near.recall(), near.precision())
	if near.recall() < 0.9 || near.precision() < 0.95 {
		t.Errorf("near duplicates: %+v", near)
	}
	if dup.recall() < 0.95 || dup.precision() < 0.98 {
		t.Errorf("duplicates: %+v", dup)
	}
	for k, s := range kinds {
		if rules[k] != "" {
			t.Logf("%s: recall %.3f", k, s.recall())
			if s.recall() < 0.95 {
				t.Errorf("%s: %+v", k, *s)
			}
		}
	}
	if f := float64(kept) / float64(clean); f < 0.99 {
		t.Errorf("%d of %d good rows kept", kept, clean)
	} else {
		t.Logf("good rows kept: %.4f", f)
	}

	// repairs
	texts := map[string]string{}
	for _, part := range []string{"train", "valid", "test"} {
		for _, e := range examples(t, dir, part) {
			texts[e.ID] = e.Segments[0].Text
		}
	}
	for _, kind := range []string{"mojibake", "encoding_windows1252", "html", "control_char"} {
		var s score
		for _, it := range items {
			if it.Kind != kind {
				continue
			}
			got, ok := texts[it.ID]
			if !ok {
				continue // a copy of it stays
			}
			var fx fixes
			var c cleaner
			if again := c.text([]byte(got), &fx); string(again) != got || fx.html || fx.control || fx.mojibake {
				t.Errorf("%s line %d: not clean after cleaning: %q", kind, it.Line, got)
			}
			if it.Clean != "" && kind != "html" && got != it.Clean {
				s.fn++
				t.Logf("%s line %d:\n got %q\nwant %q", kind, it.Line, got[max(0, len(got)-80):], it.Clean[max(0, len(it.Clean)-80):])
				continue
			}
			s.tp++
		}
		t.Logf("%s repaired: %.3f of %d", kind, s.recall(), s.tp+s.fn)
		if s.recall() < 0.95 || s.tp == 0 {
			t.Errorf("%s: %+v", kind, s)
		}
	}
	counts := map[string]int64{}
	for _, it := range items {
		counts[it.Kind]++
	}
	for kind, n := range map[string]int64{"pii_email": r.PII.Email, "pii_phone": r.PII.Phone, "pii_card": r.PII.Card, "pii_ip": r.PII.IP} {
		if n < counts[kind]*95/100 || n > counts[kind]*105/100+1 {
			t.Errorf("%s: %d rows, want about %d", kind, n, counts[kind])
		}
	}
	if c := r.Rules[RuleHTML]; c == nil || c.Repaired < 38 || c.Repaired > 42 {
		t.Errorf("html: %+v", c)
	}
	if c := r.Rules[RuleControl]; c == nil || c.Repaired < 29 || c.Repaired > 34 {
		t.Errorf("control: %+v", c)
	}
	if c := r.Rules[RuleMojibake]; c == nil || c.Repaired != 20 {
		t.Errorf("mojibake: %+v", c)
	}
	if c := r.Rules[RuleBlank]; c == nil || c.Dropped != counts["blank_line"] {
		t.Errorf("blank: %+v", c)
	}
	if r.Rows != r.Kept+r.Dropped || int(r.Dropped) != len(dropped) {
		t.Errorf("%d rows, %d kept, %d dropped, %d listed", r.Rows, r.Kept, r.Dropped, len(dropped))
	}
}

func TestDirtyQA(t *testing.T) {
	lines, items := readDirty(t, "dirty/dirty.qa.expected.json")
	_, dir := prepare(t, config(testdataFile(t, "dirty/dirty.qa.jsonl")))
	dropped := readDropped(t, dir)
	want := map[string]Rule{
		"missing_answer": RuleMissing, "missing_question": RuleMissing, "empty_answer": RuleEmpty,
		"answer_repeats_question": RuleAnswerRepeats,
		"answer_is_list":          "", "answer_is_number": "", "other_field_names": "", "conflicting_answer": "",
	}
	line := map[int64]string{}
	originals := map[string]bool{}
	dups := 0
	for _, it := range items {
		line[it.Line] = it.Kind
		if it.Kind == "duplicate" {
			originals[it.Of] = true
			continue
		}
		d := dropped[it.Line]
		if w := want[it.Kind]; d.Rule != w && !(it.Kind == "empty_answer" && d.Rule == RuleMissing) {
			t.Errorf("line %d, %s: got %q, want %q (%s)", it.Line, it.Kind, d.Rule, w, d.Note)
		}
	}
	for n := int64(1); n <= int64(lines); n++ {
		d, gone := dropped[n]
		switch {
		case !gone:
		case d.Rule == RuleExact:
			if line[n] != "duplicate" && !originals[d.ID] {
				t.Errorf("line %d: %s of %s", n, d.Rule, d.Of)
			}
			dups++
		case line[n] == "":
			t.Errorf("clean line %d dropped as %s", n, d.Rule)
		}
	}
	if dups != 25 {
		t.Errorf("%d duplicates, want 25", dups)
	}
}
