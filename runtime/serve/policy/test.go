package policy

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/fields"
)

// TestResult is a test of a policy that has run.
type TestResult struct {
	Model string // served name
	Name  string
	Got   string // what was decided, in words
	Err   error  // *fields.Error where it was not what the test wants
}

// validateTests reports the first test that can't be.
func (s *Served) validateTests(at string) error {
	voters := s.Voters()
	for i := range s.entry.Tests {
		t := &s.entry.Tests[i]
		path := fmt.Sprintf("%s.tests[%d]", at, i)
		t.Finish = cmp.Or(t.Finish, "stop")
		t.Name = cmp.Or(t.Name, fmt.Sprint(i))
		switch {
		case (t.Answer == nil) == (t.Answers == nil):
			return wrong(path, "give answer, or the answers of those that vote")
		case t.Answers != nil && voters == nil:
			return wrong(path+".answers", "are of a vote on whole answers; give answer")
		case t.Answers != nil && t.Confidence != nil && s.of == Votes:
			return wrong(path+".confidence", "is that of the votes here")
		case t.Confidence != nil && !(*t.Confidence >= 0 && *t.Confidence <= 1):
			return wrong(path+".confidence", "is %g, must be in 0 to 1", *t.Confidence)
		case t.Tokens < 0:
			return wrong(path+".tokens", "is %d, must be 0 or more", t.Tokens)
		case t.Want.Do == "" && t.Want.Answer == nil && t.Want.By == "":
			return wrong(path+".want", "is missing: accept, reject, abstain, retry, next or {answer: TEXT}")
		}
		if err := oneOf(path+".finish", t.Finish, "stop", "length"); err != nil {
			return err
		}
		if t.Want.Do != "" {
			if err := oneOf(path+".want", t.Want.Do, Accept, Reject, Abstain, Retry, Next); err != nil {
				return err
			}
		}
		for model := range t.Answers {
			if !slices.Contains(voters, model) {
				return wrong(path+".answers."+model, "does not vote")
			}
		}
		if t.Answers != nil && len(t.Answers) != len(voters) {
			return wrong(path+".answers", "are %d, and %d models vote", len(t.Answers), len(voters))
		}
	}
	return nil
}

// Test runs the file's tests.
func (p *Policy) Test() []TestResult {
	var out []TestResult
	for _, name := range p.names {
		s := p.served[name]
		for i, t := range s.entry.Tests {
			r := TestResult{Model: name, Name: t.Name}
			d := s.try(t)
			r.Got = d.words()
			if miss := t.Want.miss(d); miss != "" {
				path := fmt.Sprintf("models.%s.tests[%d]", name, i)
				r.Err = &fields.Error{File: p.file, Line: p.lines.Of(path), Path: path, Msg: fmt.Sprintf("test %s: %s", t.Name, miss)}
			}
			out = append(out, r)
		}
	}
	return out
}

// try decides of a test's answer.
func (s *Served) try(t test) Decision {
	in := Input{Prompt: t.Prompt, Model: cmp.Or(t.Model, s.Name), Confidence: 1, Tokens: t.Tokens, Finish: t.Finish, Attempt: 1}
	if t.Confidence != nil {
		in.Confidence = *t.Confidence
	}
	if t.Answer != nil {
		in.Answer = *t.Answer
		return s.Decide(context.Background(), in, nil)
	}
	var answers []string
	for _, m := range s.Voters() {
		answers = append(answers, t.Answers[m])
	}
	won := s.Tally(answers)[0]
	if d, ok := s.agreed(won); !ok {
		return d
	}
	in.Answer, in.Model = won.Answer, cmp.Or(t.Model, won.Models[0])
	if s.of == Votes {
		in.Confidence = won.Share
	}
	return s.Decide(context.Background(), in, nil)
}

func (d Decision) words() string {
	s := d.Act
	if d.Act == Accept {
		s = fmt.Sprintf("answer %q", d.Text)
	}
	if d.By != "" {
		s += ", by " + d.By
	}
	return s
}

// miss says how a decision is not what is wanted; "" where it is.
func (w want) miss(d Decision) string {
	switch {
	case w.Do != "" && w.Do != d.Act:
		return fmt.Sprintf("%s is wanted, and there is %s", w.Do, d.words())
	case w.Answer != nil && (d.Act != Accept || d.Text != *w.Answer):
		return fmt.Sprintf("answer %q is wanted, and there is %s", *w.Answer, d.words())
	case w.By != "" && w.By != d.By:
		return fmt.Sprintf("by %s is wanted, and there is %s", w.By, d.words())
	}
	return ""
}
