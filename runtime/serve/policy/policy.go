package policy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"cel.dev/cel-go/cel"

	"github.com/open-autoglm/autoglm/runtime/fields"
	"github.com/open-autoglm/autoglm/runtime/metric"
)

// Policy is a compiled file. Any goroutine may use it; it never changes.
type Policy struct {
	file   string
	lines  fields.Lines
	served map[string]*Served
	names  []string // sorted
}

// Served is what holds for one served name.
type Served struct {
	Name     string
	entry    entry
	rules    []compiled
	of       string // what the confidence is, one of Confidences
	believes bool   // it is looked at, and is of tokens
}

// compiled is a rule.
type compiled struct {
	rule
	when *expr
	then made
}

// made is an action with its expression.
type made struct {
	action
	rewrite *expr
	orElse  *made
}

// compile fills in p.
func (p *Policy) compile(f file) error {
	if len(f.Models) == 0 || len(f.Models) > maxModels {
		return wrong("models", "are %d served names; 1 to %d are taken", len(f.Models), maxModels)
	}
	p.names = slices.Sorted(maps.Keys(f.Models))
	for _, name := range p.names {
		s := &Served{Name: name, entry: f.Models[name]}
		at := "models." + name
		if err := s.entry.validate(at); err != nil {
			return err
		}
		if v := s.entry.Vote; v != nil && slices.Contains(v.Over, name) {
			return wrong(at+".vote.over", "names %s itself", name)
		}
		s.of = Mean
		if s.Voters() != nil {
			s.of = Votes
		}
		if s.entry.Gate != nil {
			s.of, s.believes = s.entry.Gate.Of, true
		}
		for i, r := range s.entry.Rules {
			path := fmt.Sprintf("%s.rules[%d]", at, i)
			c := compiled{rule: r}
			var err error
			if c.when, err = newExpr(path+".when", r.When, cel.BoolType); err != nil {
				return err
			}
			if c.then, err = newMade(path+".then", r.Then); err != nil {
				return err
			}
			s.believes = s.believes || c.when.believes || c.then.believes()
			s.rules = append(s.rules, c)
		}
		s.believes = s.believes && s.of != Votes
		if err := s.validateTests(at); err != nil {
			return err
		}
		p.served[name] = s
	}
	return nil
}

func newMade(path string, a action) (m made, err error) {
	m.action = a
	if a.Rewrite != "" {
		if m.rewrite, err = newExpr(path+".rewrite", a.Rewrite, cel.StringType); err != nil {
			return m, err
		}
	}
	if a.Else != nil {
		other, err := newMade(path+".else", *a.Else)
		if err != nil {
			return m, err
		}
		m.orElse = &other
	}
	return m, nil
}

func (m made) believes() bool {
	return m.rewrite != nil && m.rewrite.believes || m.orElse != nil && m.orElse.believes()
}

// Names are the served names that the policy speaks of, sorted; none of a nil Policy.
func (p *Policy) Names() []string {
	if p == nil {
		return nil
	}
	return slices.Clone(p.names)
}

// Find is what holds for a served name; nil where nothing does, and of a nil Policy.
func (p *Policy) Find(name string) *Served {
	if p == nil {
		return nil
	}
	return p.served[name]
}

// Voters are the models that vote with whole answers, the first of which stands for all;
// nil where there is no such vote.
func (s *Served) Voters() []string {
	if v := s.entry.Vote; v != nil && v.Kind != Soft {
		return slices.Clone(v.Over)
	}
	return nil
}

// Mixed is what a soft vote averages; false where there is none.
func (s *Served) Mixed() (Mix, bool) {
	v := s.entry.Vote
	if v == nil || v.Kind != Soft {
		return Mix{}, false
	}
	return Mix{Over: slices.Clone(v.Over), Weights: slices.Clone(v.Weights), Geometric: v.Mean == "geometric"}, true
}

// Decides tells whether answers of that name are held back until all is decided: there
// are rules, a gate, or a vote on whole answers.
func (s *Served) Decides() bool {
	return s != nil && (len(s.rules) > 0 || s.entry.Gate != nil || s.Voters() != nil)
}

// models are all that the entry names.
func (s *Served) models() []string {
	out := slices.Clone(s.entry.Next)
	if v := s.entry.Vote; v != nil {
		out = append(out, v.Over...)
	}
	var walk func(a *action)
	walk = func(a *action) {
		if a != nil && a.Model != "" {
			out = append(out, a.Model)
		}
		if a != nil {
			walk(a.Else)
		}
	}
	for i := range s.entry.Rules {
		walk(&s.entry.Rules[i].Then)
	}
	if s.entry.Gate != nil {
		walk(&s.entry.Gate.Below)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Acts are what is decided of an answer.
const (
	Accept  = "accept"
	Reject  = "reject"
	Abstain = "abstain"
	Retry   = "retry"
	Next    = "next" // of Decision.Model, or the next that there is
)

// Decision is what becomes of an answer.
type Decision struct {
	Act         string
	Text        string  // of Accept
	Rewritten   bool    // Text is a rewriting of the model's
	Replaced    bool    // Text is the policy's own
	By          string  // the rule, gate or vote that decided; "" where all let it pass
	Reason      string  // in words
	Model       string  // of Next; "" is the next of the list
	Temperature float64 // of Retry, where the request's is 0
	Fired       []Fired // the rules that did something, in order
}

// Fired is a rule that did something.
type Fired struct{ Rule, Did string } // Did: reject, answer, rewrite, retry, next, error

// Decide says what becomes of an answer. retried is how often each rule has asked for
// another already, by its name.
func (s *Served) Decide(ctx context.Context, in Input, retried map[string]int) Decision {
	d := Decision{Act: Accept, Text: in.Answer}
	if len(s.rules) > 0 {
		s.rule(ctx, newScope(in), retried, &d)
	}
	if d.Act == Accept && !d.Replaced {
		s.gate(in.Confidence, &d)
	}
	return d
}

// rule asks all rules, until one ends the matter.
func (s *Served) rule(ctx context.Context, of *scope, retried map[string]int, d *Decision) {
	ctx, cancel := context.WithTimeout(ctx, evalTime)
	defer cancel()
	for i := range s.rules {
		r := &s.rules[i]
		is, err := r.when.eval(ctx, of)
		if err == nil && is != true {
			continue
		}
		if err == nil {
			err = s.act(ctx, &r.then, r, of, retried, d)
		}
		if err != nil {
			d.Fired = append(d.Fired, Fired{r.Name, "error"})
			if s.entry.Errors == "pass" {
				continue
			}
			d.Act, d.By, d.Reason = Reject, r.Name, fmt.Sprintf("rule %s: %v", r.Name, err)
		}
		if d.Act != Accept || d.Replaced {
			return
		}
	}
}

// act does what a rule says.
func (s *Served) act(ctx context.Context, a *made, r *compiled, of *scope, retried map[string]int, d *Decision) error {
	why := cmp.Or(r.Reason, fmt.Sprintf("rule %s: %s", r.Name, r.When))
	did := ""
	switch {
	case a.Retry > 0 && retried[r.Name] < a.Retry:
		d.Act, d.Temperature, did = Retry, cmp.Or(a.Temperature, RetryTemperature), Retry
	case a.Retry > 0 && a.orElse != nil:
		return s.act(ctx, a.orElse, r, of, retried, d)
	case a.Retry > 0 || a.Do == Reject:
		d.Act, did = Reject, Reject
	case a.Do == Next || a.Model != "":
		d.Act, d.Model, did = Next, a.Model, Next
	case a.Answer != nil:
		d.Text, d.Replaced, did = *a.Answer, true, "answer"
	default:
		v, err := a.rewrite.eval(ctx, of)
		if err != nil {
			return err
		}
		text, ok := v.(string)
		if !ok || len(text) > maxText {
			return fmt.Errorf("rewrite made no text, or one of more than %d bytes", maxText)
		}
		d.Text, d.Rewritten, did = text, true, "rewrite"
		of.rewrite(text)
	}
	d.By, d.Reason = r.Name, why
	d.Fired = append(d.Fired, Fired{r.Name, did})
	return nil
}

// gate lets an answer pass that the model was sure of.
func (s *Served) gate(confidence float64, d *Decision) {
	g := s.entry.Gate
	if g == nil || confidence >= g.Confidence {
		return
	}
	d.By, d.Reason = "gate", fmt.Sprintf("the confidence %.4g (%s) is below %g", confidence, g.Of, g.Confidence)
	switch b := g.Below; {
	case b.Answer != nil:
		d.Text, d.Replaced = *b.Answer, true
	case b.Do == Next || b.Model != "":
		d.Act, d.Model = Next, b.Model
	default:
		d.Act = Abstain
	}
}

// Ballot is one answer with those that gave it.
type Ballot struct {
	Answer string   `json:"answer,omitempty"` // left out where the answer is withheld
	Share  float64  `json:"share"`            // of the votes, 0 to 1
	Models []string `json:"models"`
}

// Tally counts the answers of models that vote with whole answers, in their order: ballots
// come with the most votes first, ties in the order of the models.
func (s *Served) Tally(answers []string) []Ballot {
	v := s.entry.Vote
	var out []Ballot
	at := map[string]int{}
	for i, a := range answers {
		class := metric.Class(a)
		k, known := at[class]
		if !known {
			k = len(out)
			at[class] = k
			out = append(out, Ballot{Answer: a})
		}
		out[k].Share += v.Weights[i]
		out[k].Models = append(out[k].Models, v.Over[i])
	}
	slices.SortStableFunc(out, func(a, b Ballot) int {
		if d := b.Share - a.Share; d > 1e-9 || d < -1e-9 { // sums of weights in another order
			return cmp.Compare(b.Share, a.Share)
		}
		return 0
	})
	return out
}

// agreed says what becomes of a vote before any rule looks at it.
func (s *Served) agreed(b Ballot) (Decision, bool) {
	if need := s.entry.Vote.Agree; b.Share < need-1e-9 {
		return Decision{Act: Abstain, By: "vote", Reason: fmt.Sprintf("%.4g of the votes agree, %g must", b.Share, need)}, false
	}
	return Decision{}, true
}
