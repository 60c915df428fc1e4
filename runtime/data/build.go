package data

import (
	"bytes"
	"unicode/utf8"
)

// rowBuilder makes the segments of a row for one task and one source's columns.
type rowBuilder struct {
	task  Task
	roles map[string]string
	plain bool // the source is one long text

	cl    cleaner
	segs  []rawSegment
	joint []byte
	note  string
	fixed []Rule
	id    []byte
}

// built is a row ready for the indexes; its slices live until the next build.
type built struct {
	group []byte // what the split keeps together: question, context, text
	near  []byte // text to compare for near duplicates, nil for none
}

// field finds the column of a role, or, in rows that name it otherwise, an alias.
func (r *rowBuilder) field(rec *Record, ro role, name string) *Field {
	if f := rec.get(name); f != nil {
		return f
	}
	for _, a := range aliasNames(ro) {
		for i := range rec.Fields {
			f := &rec.Fields[i]
			if plainName(string(f.Name)) != a {
				continue
			}
			taken := false
			for _, c := range r.roles {
				taken = taken || c == string(f.Name)
			}
			if !taken {
				r.fix(RuleAlias)
				return f
			}
		}
	}
	return nil
}

func (r *rowBuilder) fix(rule Rule) {
	for _, x := range r.fixed {
		if x == rule {
			return
		}
	}
	r.fixed = append(r.fixed, rule)
}

// value gives a role's text, cleaned; rule is set when the row must go.
func (r *rowBuilder) value(rec *Record, ro role, lenient bool) (text []byte, rule Rule) {
	name := r.roles[ro.String()]
	f := r.field(rec, ro, name)
	if f == nil || f.Kind == Null {
		r.note = "no " + ro.String()
		return nil, RuleMissing
	}
	b := f.Val
	if f.Kind != String {
		ok := false
		if lenient {
			if b, ok = scalarText(f.Val, f.Kind); ok && (f.Kind == Number || f.Kind == Bool) && ro != roleLabel {
				r.fix(RuleWrongType)
			} else if ok && ro == roleAnswer && f.Kind == Array && plainName(string(f.Name)) != "answers" {
				r.fix(RuleWrongType)
			}
		}
		if !ok {
			if lenient && (f.Kind == Array || f.Kind == Object) && isEmptyAnswer(f.Val) {
				r.note = "no " + ro.String()
				return nil, RuleMissing
			}
			r.note = ro.String() + " is a " + f.Kind.String()
			return nil, RuleWrongType
		}
	}
	if b = r.clean(b); len(b) == 0 {
		r.note = ro.String() + " is empty"
		return nil, RuleEmpty
	}
	return b, ""
}

func isEmptyAnswer(raw []byte) bool {
	return !bytes.ContainsRune(raw, '"') || bytes.Contains(raw, []byte(`"text":[]`))
}

func (r *rowBuilder) clean(b []byte) []byte {
	var fx fixes
	b = r.cl.text(b, &fx)
	if fx.control {
		r.fix(RuleControl)
	}
	if fx.html {
		r.fix(RuleHTML)
	}
	if fx.mojibake {
		r.fix(RuleMojibake)
	}
	return b
}

// scalarText reads an answer that is no string: a number or bool by its literal,
// a list by its first text, {"text": …} by that text (or the first of its list).
func scalarText(raw []byte, k Kind) (out []byte, ok bool) {
	switch k {
	case String:
		return stringValue(raw), true
	case Number, Bool:
		return raw, true
	case Array:
		elements(raw, func(v []byte, k Kind) {
			if !ok && k != Array {
				out, ok = scalarText(v, k)
			}
		})
	case Object:
		members(raw, func(key string, v []byte, k Kind) {
			if !ok && key == "text" && k != Object {
				out, ok = scalarText(v, k)
			}
		})
	}
	return out, ok
}

// build fills segs. rule is set when the row is dropped, with the reason in note.
func (r *rowBuilder) build(rec *Record) (out built, rule Rule) {
	r.segs, r.fixed, r.note = r.segs[:0], r.fixed[:0], ""
	r.cl.seen.email, r.cl.seen.phone, r.cl.seen.card, r.cl.seen.ip = false, false, false, false
	if rec.Fixed != "" {
		r.fix(rec.Fixed)
	}
	switch r.task {
	case TaskQA:
		return r.answer(rec)
	case TaskSummary:
		doc, rule := r.value(rec, roleDocument, false)
		if rule != "" {
			return out, rule
		}
		sum, rule := r.value(rec, roleSummary, true)
		if rule != "" {
			return out, rule
		}
		r.pair(doc, sum)
		return built{group: doc, near: doc}, ""
	case TaskClassification:
		text, rule := r.value(rec, roleText, false)
		if rule != "" {
			return out, rule
		}
		label, rule := r.value(rec, roleLabel, true)
		if rule != "" {
			return out, rule
		}
		r.pair(text, label)
		return built{group: text}, ""
	case TaskDialogue:
		return r.dialogue(rec)
	}
	text, rule := r.value(rec, roleText, false)
	if rule != "" {
		return out, rule
	}
	r.segs = append(r.segs, rawSegment{text: text, scored: true})
	return built{group: text, near: text}, ""
}

func (r *rowBuilder) pair(user, answer []byte) {
	r.segs = append(r.segs, rawSegment{role: 2, text: user}, rawSegment{role: 3, text: answer, scored: true})
}

func (r *rowBuilder) answer(rec *Record) (out built, rule Rule) {
	q, rule := r.value(rec, roleQuestion, false)
	if rule != "" {
		return out, rule
	}
	a, rule := r.value(rec, roleAnswer, true)
	if rule != "" {
		return out, rule
	}
	if bytes.Equal(q, a) || len(q) == len(a) && bytes.EqualFold(q, a) {
		r.note = "answer is the question again"
		return out, RuleAnswerRepeats
	}
	group := q
	r.joint = r.joint[:0]
	if name := r.roles["context"]; name != "" {
		if f := rec.get(name); f != nil && f.Kind == String {
			if c := r.clean(f.Val); len(c) > 0 {
				group = c
				// an instruction comes before its input, a question after its context
				if n := plainName(name); n == "input" {
					r.joint = append(append(append(r.joint, q...), "\n\n"...), c...)
				} else {
					r.joint = append(append(append(r.joint, c...), "\n\n"...), q...)
				}
			}
		}
	}
	if len(r.joint) > 0 {
		q = r.joint
	}
	r.pair(q, a)
	return built{group: group}, ""
}

// speakers gives the role of a turn's speaker; 0 for one that is not known.
var speakers = map[string]byte{
	"system": 1, "developer": 1,
	"user": 2, "human": 2, "customer": 2, "tool": 2, "function": 2, "observation": 2, "usr": 2, "prompter": 2,
	"assistant": 3, "gpt": 3, "bot": 3, "model": 3, "chatgpt": 3, "agent": 3, "ai": 3, "sys": 3,
}

func (r *rowBuilder) dialogue(rec *Record) (out built, rule Rule) {
	f := r.field(rec, roleMessages, r.roles["messages"])
	if f == nil || f.Kind == Null {
		r.note = "no messages"
		return out, RuleMissing
	}
	if f.Kind != Array {
		r.note = "messages is a " + f.Kind.String()
		return out, RuleWrongType
	}
	answers := 0
	elements(f.Val, func(v []byte, k Kind) {
		if rule != "" {
			return
		}
		if k != Object {
			r.note, rule = "a turn is a "+k.String(), RuleWrongType
			return
		}
		var who, what []byte
		seen := false
		members(v, func(key string, val []byte, k Kind) {
			switch key {
			case "role", "from", "speaker":
				if k == String {
					who = stringValue(val)
				}
			case "content", "value", "text":
				if k == String {
					what, seen = stringValue(val), true
				}
			}
		})
		role := speakers[plainName(string(who))]
		switch {
		case role == 0:
			r.note, rule = "a turn's speaker "+cutText(who, 40)+" is not known", RuleWrongType
			return
		case !seen:
			r.note, rule = "a turn has no text", RuleMissing
			return
		}
		// the cleaner's buffers are few: a turn that it changed is copied
		t := r.clean(what)
		if len(t) > 0 && (len(t) > len(what) || len(what) > 0 && &t[len(t)-1] != &what[len(what)-1]) {
			t = append([]byte(nil), t...)
		}
		if len(t) == 0 {
			if role == 3 {
				r.note, rule = "an answer is empty", RuleEmpty
			}
			return
		}
		if role == 3 {
			answers++
		}
		r.segs = append(r.segs, rawSegment{role: role, text: t, scored: role == 3})
	})
	if rule != "" {
		return out, rule
	}
	if answers == 0 {
		r.note = "no turn of an assistant"
		return out, RuleMissing
	}
	for i := range r.segs {
		if out.group = r.segs[i].text; r.segs[i].role == 2 {
			break
		}
	}
	// many dialogues open alike: the first exchange, not the greeting, is the group
	r.joint = r.joint[:0]
	for i := range min(len(r.segs), 3) {
		r.joint = append(append(r.joint, r.segs[i].text...), 0)
	}
	if len(r.segs) > 2 {
		out.group = r.joint
	}
	return out, ""
}

// pieces cuts a text into pieces of at most n characters, at a paragraph's, line's,
// sentence's or word's end where one is near.
func pieces(b []byte, n int) [][]byte {
	var out [][]byte
	for len(b) > 0 {
		end, count := 0, 0
		for end < len(b) && count < n {
			_, w := utf8.DecodeRune(b[end:])
			end += w
			count++
		}
		if end < len(b) {
			end = cutPoint(b, end, end/2)
		}
		if p := trimText(b[:end]); len(p) > 0 {
			out = append(out, p)
		}
		b = b[end:]
	}
	return out
}

// cutPoint gives the best place to cut b at or before end and after least: after a
// blank line, a line, a sentence or a space; else at a character's start.
func cutPoint(b []byte, end, least int) int {
	w := b[least:end]
	for _, sep := range []string{"\n\n", "\n", "。", ". ", " "} {
		if i := bytes.LastIndex(w, []byte(sep)); i >= 0 && least+i+len(sep) > 0 {
			return least + i + len(sep)
		}
	}
	for end > 0 && end < len(b) && !utf8.RuneStart(b[end]) {
		end--
	}
	if end == 0 {
		_, end = utf8.DecodeRune(b)
	}
	return end
}
