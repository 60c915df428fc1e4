package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/fields"
)

// file is a policy as its user writes it.
type file struct {
	Models map[string]entry `json:"models"` // by served name
}

// entry is what holds for one served name.
type entry struct {
	Vote   *vote    `json:"vote"`   // who answers; nil is the model of that name
	Rules  []rule   `json:"rules"`  // in order
	Gate   *gate    `json:"gate"`   //
	Next   []string `json:"next"`   // models to fall to, in order
	Errors string   `json:"errors"` // what a rule does that can't be evaluated: reject (default) or pass
	Tests  []test   `json:"tests"`  //
}

type vote struct {
	Over    []string  `json:"over"`    // served names
	Kind    string    `json:"kind"`    // majority, weighted or soft
	Weights []float64 `json:"weights"` // of weighted and soft; none is equal ones
	Mean    string    `json:"mean"`    // of soft: arithmetic (of probabilities, default) or geometric
	Agree   float64   `json:"agree"`   // the least share that the winner must have; 0 is any
}

type rule struct {
	Name   string `json:"name"`   // in reasons and counters; "" is its number
	When   string `json:"when"`   // CEL, true or false
	Then   action `json:"then"`   //
	Reason string `json:"reason"` // for those who are answered; "" names the rule
}

// action is what is done with an answer. Exactly one of its fields is set; temperature and
// else go with retry.
type action struct {
	Do      string  `json:"do"`      // reject, next, or of a gate abstain
	Answer  *string `json:"answer"`  // this text in place of it
	Rewrite string  `json:"rewrite"` // CEL, a text
	Retry   int     `json:"retry"`   // times, each with another seed
	Model   string  `json:"model"`   // fall to this one

	Temperature float64 `json:"temperature"` // of a retry where the request's is 0; 0 is RetryTemperature
	Else        *action `json:"else"`        // after the last retry; nil rejects
}

// ShortFor says that an action may be written as one word.
func (*action) ShortFor() string { return "Do" }

type gate struct {
	Confidence  float64 `json:"confidence"`  // the least that passes, 0 to 1
	Of          string  `json:"of"`          // one of Confidences
	Temperature float64 `json:"temperature"` // in place of the bundle's calibration; 0 is that
	Below       action  `json:"below"`       // abstain, next, or an answer
}

type test struct {
	Name       string            `json:"name"`
	Model      string            `json:"model"` // whose answer it is; "" is the first that is asked
	Prompt     string            `json:"prompt"`
	Answer     *string           `json:"answer"`
	Answers    map[string]string `json:"answers"`    // of a vote, by model
	Confidence *float64          `json:"confidence"` // 1 where it is left out
	Tokens     int               `json:"tokens"`
	Finish     string            `json:"finish"` // stop (default) or length
	Want       want              `json:"want"`
}

type want struct {
	Do     string  `json:"do"`     // accept, reject, abstain, retry, next
	Answer *string `json:"answer"` // the text that is given
	By     string  `json:"by"`     // the rule that decided, or gate, or vote
}

// ShortFor says that what is wanted may be written as one word.
func (*want) ShortFor() string { return "Do" }

// Kinds of votes.
const (
	Majority = "majority" // of whole answers, one vote each
	Weighted = "weighted" // of whole answers, by weights
	Soft     = "soft"     // of the next token's probabilities
)

// Confidences are what a gate may look at.
const (
	Mean      = "mean"      // the mean probability of the answer's tokens (default)
	Geometric = "geometric" // exp of their mean log-probability
	Product   = "product"   // of the whole answer
	Least     = "least"     // of its least likely token
	Votes     = "votes"     // the share of the votes that it has; default of a vote on whole answers
)

// Bounds of a policy.
const (
	MaxFile          = 1 << 20   // bytes
	maxModels        = 64        // served names
	maxRules         = 100       // of a name
	maxVoters        = 16        //
	maxRetries       = 8         //
	maxExpression    = 4096      // bytes
	maxText          = 256 << 10 // bytes of a text that a rule looks at or makes
	RetryTemperature = 0.7
)

// Load reads a policy file, compiles it and runs its tests: an error names the file, the
// line and the field, or the test that failed.
func Load(path string) (*Policy, error) {
	p, err := Read(path)
	if err != nil {
		return nil, err
	}
	for _, t := range p.Test() {
		if t.Err != nil {
			return nil, t.Err
		}
	}
	return p, nil
}

// Read is Load without the tests.
func Read(path string) (*Policy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return Parse(b, path)
}

// Parse is Read for bytes; name stands in errors.
func Parse(b []byte, name string) (*Policy, error) {
	if len(b) > MaxFile {
		return nil, &fields.Error{File: name, Msg: fmt.Sprintf("is larger than %d bytes; is this a policy?", MaxFile)}
	}
	var f file
	lines, err := fields.Decode(b, name, &f)
	if err != nil {
		return nil, err
	}
	p := &Policy{file: name, lines: lines, served: map[string]*Served{}}
	if err := p.compile(f); err != nil {
		return nil, p.located(err)
	}
	return p, nil
}

// located is an error of a field with the file and the line.
func (p *Policy) located(err error) error {
	var bad *fields.Error
	if errors.As(err, &bad) {
		bad.File, bad.Line = p.file, p.lines.Of(bad.Path)
	}
	return err
}

func wrong(path, format string, args ...any) error {
	return &fields.Error{Path: path, Msg: fmt.Sprintf(format, args...)}
}

// oneOf refuses a word that is none of those that are known.
func oneOf(path, word string, known ...string) error {
	if slices.Contains(known, word) {
		return nil
	}
	return wrong(path, "%q is not one of %s%s", word, strings.Join(known, ", "), fields.DidYouMean(word, known))
}

// validate reports the first field that can't be; it fills in defaults.
func (e *entry) validate(at string) error {
	if len(e.Rules) > maxRules {
		return wrong(at+".rules", "are %d, at most %d are taken", len(e.Rules), maxRules)
	}
	if e.Vote == nil && e.Gate == nil && len(e.Rules) == 0 {
		return wrong(at, "says nothing: give vote, rules or gate")
	}
	e.Errors = cmp.Or(e.Errors, "reject")
	if err := oneOf(at+".errors", e.Errors, "reject", "pass"); err != nil {
		return err
	}
	if e.Vote != nil {
		if err := e.Vote.validate(at + ".vote"); err != nil {
			return err
		}
	}
	for i, n := range e.Next {
		if n == "" || slices.Contains(e.Next[:i], n) {
			return wrong(fmt.Sprintf("%s.next[%d]", at, i), "%q is empty, or stands twice", n)
		}
	}
	seen := map[string]bool{}
	for i := range e.Rules {
		r := &e.Rules[i]
		path := fmt.Sprintf("%s.rules[%d]", at, i)
		r.Name = cmp.Or(r.Name, fmt.Sprint(i))
		switch {
		case seen[r.Name]:
			return wrong(path+".name", "%q stands twice", r.Name)
		case len(r.Name) > 100 || r.Name == "gate" || r.Name == "vote":
			return wrong(path+".name", "%q is too long, or what the gate and the vote are called", r.Name)
		case r.When == "":
			return wrong(path+".when", "is missing; 'true' is always")
		}
		seen[r.Name] = true
		if err := r.Then.validate(path+".then", e, false); err != nil {
			return err
		}
	}
	if e.Gate != nil {
		return e.Gate.validate(at+".gate", e)
	}
	return nil
}

func (v *vote) validate(at string) error {
	if err := oneOf(at+".kind", v.Kind, Majority, Weighted, Soft); err != nil {
		return err
	}
	if len(v.Over) < 2 || len(v.Over) > maxVoters {
		return wrong(at+".over", "are %d models; 2 to %d vote", len(v.Over), maxVoters)
	}
	for i, n := range v.Over {
		if n == "" || slices.Contains(v.Over[:i], n) {
			return wrong(fmt.Sprintf("%s.over[%d]", at, i), "%q is empty, or stands twice", n)
		}
	}
	switch {
	case v.Kind == Majority && len(v.Weights) > 0:
		return wrong(at+".weights", "are for weighted and soft votes: each has one vote in a majority")
	case v.Kind == Weighted && len(v.Weights) == 0:
		return wrong(at+".weights", "are missing: one for each of over")
	case len(v.Weights) > 0 && len(v.Weights) != len(v.Over):
		return wrong(at+".weights", "are %d, of %d models", len(v.Weights), len(v.Over))
	case v.Mean != "" && v.Kind != Soft:
		return wrong(at+".mean", "is for soft votes")
	case v.Agree != 0 && v.Kind == Soft:
		return wrong(at+".agree", "is for votes on whole answers: a soft vote has one answer")
	case !(v.Agree >= 0 && v.Agree <= 1):
		return wrong(at+".agree", "is %g, must be in 0 to 1", v.Agree)
	}
	sum := 0.0
	for i, w := range v.Weights {
		if !(w > 0 && w <= 1e6) {
			return wrong(fmt.Sprintf("%s.weights[%d]", at, i), "is %g, must be above 0 and at most 1e6", w)
		}
		sum += w
	}
	weights := make([]float64, len(v.Over)) // that add up to 1
	for i := range weights {
		weights[i] = 1 / float64(len(v.Over))
		if len(v.Weights) > 0 {
			weights[i] = v.Weights[i] / sum
		}
	}
	v.Weights, v.Mean = weights, cmp.Or(v.Mean, "arithmetic")
	return oneOf(at+".mean", v.Mean, "arithmetic", "geometric")
}

func (g *gate) validate(at string, e *entry) error {
	whole := e.Vote != nil && e.Vote.Kind != Soft
	if g.Of == "" {
		g.Of = Mean
		if whole {
			g.Of = Votes
		}
	}
	if err := oneOf(at+".of", g.Of, Mean, Geometric, Product, Least, Votes); err != nil {
		return err
	}
	switch {
	case g.Of == Votes && !whole:
		return wrong(at+".of", "votes are of a vote on whole answers")
	case !(g.Confidence > 0 && g.Confidence <= 1):
		return wrong(at+".confidence", "is %g, must be above 0 and at most 1", g.Confidence)
	case g.Temperature != 0 && !(g.Temperature >= 0.01 && g.Temperature <= 100):
		return wrong(at+".temperature", "is %g, must be in 0.01 to 100; leave it out for the bundle's calibration", g.Temperature)
	case g.Temperature != 0 && g.Of == Votes:
		return wrong(at+".temperature", "is of tokens' probabilities, and this gate looks at votes")
	}
	return g.Below.validate(at+".below", e, true)
}

// validate reports what an action can't be, of a rule or of a gate.
func (a *action) validate(at string, e *entry, ofGate bool) error {
	set := 0
	for _, is := range []bool{a.Do != "", a.Answer != nil, a.Rewrite != "", a.Retry != 0, a.Model != ""} {
		if is {
			set++
		}
	}
	words := "reject, next, {answer: TEXT}, {rewrite: CEL}, {retry: TIMES} or {model: NAME}"
	if ofGate {
		words = "abstain, next, {answer: TEXT} or {model: NAME}"
	}
	if set != 1 {
		return wrong(at, "must be one of %s", words)
	}
	if a.Do != "" {
		known := []string{"reject", "next"}
		if ofGate {
			known[0] = "abstain"
		}
		if err := oneOf(at, a.Do, known...); err != nil {
			return err
		}
	}
	switch {
	case ofGate && (a.Rewrite != "" || a.Retry != 0):
		return wrong(at, "must be one of %s", words)
	case a.Do == "next" && len(e.Next) == 0:
		return wrong(at, "there is no model to fall to: give next: [NAME, …] beside the rules")
	case a.Answer != nil && len(*a.Answer) > maxText:
		return wrong(at+".answer", "is longer than %d bytes", maxText)
	case a.Retry < 0 || a.Retry > maxRetries:
		return wrong(at+".retry", "is %d, must be in 1 to %d", a.Retry, maxRetries)
	case a.Retry == 0 && (a.Temperature != 0 || a.Else != nil):
		return wrong(at, "temperature and else go with retry")
	case a.Temperature != 0 && !(a.Temperature > 0 && a.Temperature <= 2):
		return wrong(at+".temperature", "is %g, must be above 0 and at most 2", a.Temperature)
	}
	if a.Else == nil {
		return nil
	}
	if a.Else.Retry != 0 {
		return wrong(at+".else", "is another retry; raise retry")
	}
	return a.Else.validate(at+".else", e, false)
}
