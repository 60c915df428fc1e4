package data

import (
	"fmt"
	"sort"
)

// Guess is a task with the grounds for it.
type Guess struct {
	Task       Task              `json:"task"`
	Confidence float64           `json:"confidence"` // 0 to 1
	Reasons    []string          `json:"reasons"`
	Roles      map[string]string `json:"roles,omitempty"` // role to column
}

// pick gives the column of a role: one named for it, the most telling name among
// those that half of the rows have.
func pick(cols []*column, r role, rows int64, taken map[string]string, fits func(*column) bool) *column {
	var best *column
	bestRank := 0
	for _, c := range cols {
		k := rank(c.name, r)
		if k < 0 || int64(c.n)*2 <= rows || fits != nil && !fits(c) {
			continue
		}
		used := false
		for _, t := range taken {
			used = used || t == c.name
		}
		if !used && (best == nil || k < bestRank) {
			best, bestRank = c, k
		}
	}
	return best
}

// guess names the task of a table from its columns' names and contents.
func guess(cols []*column, rows int64) Guess {
	roles := map[string]string{}
	textual := func(c *column) bool { return c.mostly(String) }
	for _, c := range cols {
		if c.chat*2 > c.n && c.chat > 0 {
			roles["messages"] = c.name
			return Guess{TaskDialogue, 0.98, []string{fmt.Sprintf("column %q holds lists of turns, each with a speaker and a text", c.name)}, roles}
		}
	}
	q := pick(cols, roleQuestion, rows, nil, textual)
	a := pick(cols, roleAnswer, rows, nil, func(c *column) bool { return !c.mostly(Null) })
	if q != nil && a != nil {
		roles["question"], roles["answer"] = q.name, a.name
		g := Guess{TaskQA, 0.95, []string{fmt.Sprintf("columns %q and %q are named as a question and its answer", q.name, a.name)}, roles}
		if c := pick(cols, roleContext, rows, roles, func(c *column) bool { return textual(c) || c.kinds[String] > 0 }); c != nil {
			roles["context"] = c.name
			g.Reasons = append(g.Reasons, fmt.Sprintf("column %q is the text that the question is about", c.name))
			g.Confidence = 0.97
		}
		if q.questions*2 > q.n {
			g.Reasons = append(g.Reasons, fmt.Sprintf("%d %% of %q end in a question mark", 100*q.questions/q.n, q.name))
			g.Confidence = 0.98
		}
		return g
	}
	if s := pick(cols, roleSummary, rows, nil, textual); s != nil {
		t := map[string]string{"summary": s.name}
		if d := pick(cols, roleDocument, rows, t, textual); d != nil && d.mean() > 1.3*s.mean() {
			t["document"] = d.name
			return Guess{TaskSummary, 0.96, []string{
				fmt.Sprintf("columns %q and %q are named as a document and its summary", d.name, s.name),
				fmt.Sprintf("documents have %.0f bytes on average, summaries %.0f", d.mean(), s.mean()),
			}, t}
		}
	}
	text := pick(cols, roleText, rows, nil, (*column).words)
	if text != nil {
		t := map[string]string{"text": text.name}
		l := pick(cols, roleLabel, rows, t, func(c *column) bool {
			return (c.mostly(String) || c.mostly(Number) || c.mostly(Bool)) && c.mean() < 60
		})
		if l == nil {
			for _, c := range cols {
				if c != text && rolesOf(c.name)&roleMeta == 0 && len(c.distinct) >= 2 && len(c.distinct) <= 20 && int64(len(c.distinct))*10 <= rows && int64(c.n)*2 > rows && c.mean() < 40 && text.mean() < 500 {
					l = c
					break
				}
			}
		}
		if l != nil && len(l.distinct) >= 2 && int64(len(l.distinct)*2) <= max(rows, 4) {
			t["label"] = l.name
			conf := 0.95
			if r := rank(l.name, roleLabel); r < 0 || r > 8 {
				conf = 0.75
			}
			return Guess{TaskClassification, conf, []string{
				fmt.Sprintf("column %q is text", text.name),
				fmt.Sprintf("column %q has %d different values in %d rows", l.name, len(l.distinct), rows),
			}, t}
		}
		conf := 0.9
		if text.mean() > 60 {
			conf = 0.95
		}
		return Guess{TaskText, conf, []string{fmt.Sprintf("column %q is text, and no other column is an answer, a summary or a label", text.name)}, t}
	}
	return guessByContent(cols, rows)
}

// guessByContent looks at what nameless columns hold.
func guessByContent(cols []*column, rows int64) Guess {
	var texts []*column
	for _, c := range cols {
		if c.words() && int64(c.n)*2 > rows && c.spaces*3 > c.kinds[String] {
			texts = append(texts, c)
		}
	}
	var q *column
	for _, c := range texts {
		if c.questions*2 > c.n && c.mean() < 500 && (q == nil || c.questions > q.questions) {
			q = c
		}
	}
	if q != nil {
		var a, long *column
		for _, c := range cols {
			if c == q || !c.mostly(String) && !c.mostly(Number) || rolesOf(c.name)&roleMeta != 0 {
				continue
			}
			if c.mean() > 2*q.mean() && c.mean() > 150 {
				if long == nil || c.mean() > long.mean() {
					long = c
				}
			} else if a == nil || c.mean() > a.mean() {
				a = c
			}
		}
		if a == nil {
			a, long = long, nil
		}
		if a != nil {
			g := Guess{TaskQA, 0.8, []string{
				fmt.Sprintf("%d %% of column %q end in a question mark", 100*q.questions/q.n, q.name),
				fmt.Sprintf("column %q is taken as the answer", a.name),
			}, map[string]string{"question": q.name, "answer": a.name}}
			if long != nil {
				g.Roles["context"] = long.name
				g.Reasons = append(g.Reasons, fmt.Sprintf("column %q, %.0f bytes on average, is taken as the context", long.name, long.mean()))
			}
			return g
		}
	}
	if len(texts) >= 1 {
		sort.SliceStable(texts, func(i, j int) bool { return texts[i].mean() > texts[j].mean() })
		d := texts[0]
		for _, c := range cols {
			if c != d && c.mostly(String) && len(c.distinct) >= 2 && int64(len(c.distinct))*5 <= rows && c.mean() < 40 && d.mean() < 1000 && d.mean() > 2*c.mean() && rolesOf(c.name)&roleMeta == 0 {
				return Guess{TaskClassification, 0.6, []string{
					fmt.Sprintf("column %q is the longest text", d.name),
					fmt.Sprintf("column %q has %d different values in %d rows", c.name, len(c.distinct), rows),
				}, map[string]string{"text": d.name, "label": c.name}}
			}
		}
		if len(texts) == 2 && d.mean() > 4*texts[1].mean() && d.mean() > 200 {
			return Guess{TaskSummary, 0.5, []string{
				fmt.Sprintf("column %q has %.0f bytes on average and %q %.0f", d.name, d.mean(), texts[1].name, texts[1].mean()),
			}, map[string]string{"document": d.name, "summary": texts[1].name}}
		}
		if d.mean() >= 40 {
			return Guess{TaskText, 0.5, []string{fmt.Sprintf("column %q is the longest text", d.name)}, map[string]string{"text": d.name}}
		}
	}
	return Guess{"", 0, []string{"no column holds running text: numbers, codes and categories alone are not learnt from"}, nil}
}
