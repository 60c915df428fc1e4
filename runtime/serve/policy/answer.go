package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/metric"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// MaxAttempts is how often models are asked for one answer; a vote counts once.
const MaxAttempts = 16

// Models finds the models that are asked: a serve.Hub.
type Models interface {
	Get(name, version string) (m *serve.Model, release func(), err error)
}

// Question is what is asked of a served name.
type Question struct {
	Models Models
	Lead   *serve.Model // the one that answers, or votes, first
	Prompt string       // as rules see it
	// Ask makes a model's request, a new one each time.
	Ask    func(m *serve.Model) (serve.Request, error)
	Events Events
}

// Events are told what a policy does, from the goroutine that calls Answer.
type Events struct {
	Rule    func(served, rule, did string) // a rule did something: see Fired
	Gate    func(served, outcome string)   // passed, abstain, next, answer
	Vote    func(served, outcome string)   // unanimous, majority (more than half), plurality, tie, split (too few agree)
	Outcome func(served, outcome string)   // of the whole, see Verdict
}

// Outcomes.
const (
	Accepted  = "accepted"  // a model's text as it is
	Rewritten = "rewritten" // a model's text as a rule rewrote it
	Replaced  = "replaced"  // the policy's own text
	Rejected  = "rejected"  // nothing: a rule refused the text
	Abstained = "abstained" // nothing: the model, or the vote, was not sure enough
)

// Verdict is what was decided, as its answer's metadata has it.
type Verdict struct {
	Outcome    string   `json:"outcome"`
	Model      string   `json:"model,omitempty"`      // whose text it was
	By         string   `json:"by,omitempty"`         // the rule that decided, gate or vote
	Reason     string   `json:"reason,omitempty"`     // in words
	Confidence *float64 `json:"confidence,omitempty"` // where it was looked at
	Of         string   `json:"confidence_of,omitempty"`
	Calibrated *bool    `json:"calibrated,omitempty"` // whether it is at a temperature that was fitted
	Attempts   int      `json:"attempts"`
	Earlier    []Step   `json:"earlier,omitempty"` // attempts that did not stand
	Votes      []Ballot `json:"votes,omitempty"`
}

// Step is an attempt that did not stand.
type Step struct {
	Model  string `json:"model"`
	By     string `json:"by"`
	Did    string `json:"did"` // retry or next
	Reason string `json:"reason"`
}

// Answer is what is given.
type Answer struct {
	serve.Result               // Text is what is given; IDs are its tokens where it is a model's as it is, else nil
	Tokens       []serve.Token // of Request.Logprobs, where there are IDs
	Computed     int           // tokens that were generated for it, over all attempts and models
	Verdict      Verdict
}

// Kept tells whether the text is a model's as it is.
func (v *Verdict) Kept() bool { return v.Outcome == Accepted }

// Withheld tells whether nothing is said.
func (v *Verdict) Withheld() bool { return v.Outcome == Rejected || v.Outcome == Abstained }

// Parameters are the verdict as the Open Inference Protocol's parameters, which hold
// texts, numbers and booleans alone: the whole as JSON, and what is asked for most.
func (v *Verdict) Parameters() map[string]any {
	whole, err := json.Marshal(v)
	if err != nil {
		return nil // no number of a verdict is infinite
	}
	out := map[string]any{"autoglm": string(whole), "autoglm_outcome": v.Outcome, "autoglm_attempts": int64(v.Attempts)}
	for name, text := range map[string]string{"autoglm_model": v.Model, "autoglm_by": v.By, "autoglm_reason": v.Reason} {
		if text != "" {
			out[name] = text
		}
	}
	if v.Confidence != nil {
		out["autoglm_confidence"] = *v.Confidence
	}
	return out
}

// attempt is one model's answer, or one vote's.
type attempt struct {
	res        serve.Result
	tokens     []serve.Token
	model      string
	confidence float64
	calibrated bool
	votes      []Ballot
	decided    *Decision // of a vote that came to nothing
}

// asking is an Answer under way.
type asking struct {
	*Served
	q       Question
	retried map[string]int
	asked   []string // models that were fallen to, and the first
	left    []string // of next
	spent   int      // tokens generated
	verdict Verdict
}

// Answer asks until an answer stands, or nothing can. The error is that of a model.
func (s *Served) Answer(ctx context.Context, q Question) (Answer, error) {
	a := asking{Served: s, q: q, retried: map[string]int{}, left: s.entry.Next}
	if s.Voters() == nil { // one that has voted may still be asked by itself
		a.asked = []string{q.Lead.Name}
	}
	who, temperature := "", 0.0 // the first
	for {
		a.verdict.Attempts++
		t, err := a.attempt(ctx, who, temperature)
		if err != nil {
			return Answer{Computed: a.spent}, err
		}
		d := Decision{}
		if t.decided != nil {
			d = *t.decided
		} else {
			d = s.Decide(ctx, Input{
				Prompt: q.Prompt, Answer: t.res.Text, Model: t.model, Confidence: t.confidence, Tokens: len(t.res.IDs), Finish: finish(t.res.Reason), Attempt: a.verdict.Attempts,
			}, a.retried)
		}
		a.tell(d)
		if err := ctx.Err(); err != nil { // a rule that was cut off decides nothing
			return Answer{Computed: a.spent}, fmt.Errorf("policy: %w", context.Cause(ctx))
		}
		again := false
		switch {
		case d.Act == Retry && a.verdict.Attempts < MaxAttempts:
			a.retried[d.By]++
			temperature, again = d.Temperature, true
		case d.Act == Next && a.verdict.Attempts < MaxAttempts:
			if next := a.next(d.Model); next != "" {
				who, temperature, again = next, 0, true
			}
		}
		if !again {
			return a.end(t, d), nil
		}
		a.verdict.Earlier = append(a.verdict.Earlier, Step{t.model, d.By, d.Act, d.Reason})
	}
}

func finish(r serve.Reason) string {
	if r == serve.ReasonLength {
		return "length"
	}
	return "stop"
}

// next is the model to fall to: the one that is wanted, or the next of the list; "" where
// none is left.
func (a *asking) next(want string) string {
	for len(a.left) > 0 && slices.Contains(a.asked, a.left[0]) {
		a.left = a.left[1:]
	}
	if want == "" && len(a.left) > 0 {
		want, a.left = a.left[0], a.left[1:]
	}
	if want == "" || slices.Contains(a.asked, want) {
		return ""
	}
	a.asked = append(a.asked, want)
	return want
}

// attempt asks a model, or for "" the first: it, or those that vote. A temperature is for
// a request that is greedy otherwise.
func (a *asking) attempt(ctx context.Context, who string, temperature float64) (attempt, error) {
	if who == "" && a.Voters() != nil {
		return a.vote(ctx, temperature)
	}
	t, err := a.one(ctx, who, temperature)
	a.spent += len(t.res.IDs)
	return t, err
}

// one asks one model; "" is the first.
func (a *asking) one(ctx context.Context, who string, temperature float64) (attempt, error) {
	m := a.q.Lead
	if who != "" && who != m.Name {
		other, release, err := a.q.Models.Get(who, "")
		if err != nil {
			return attempt{model: who}, err
		}
		defer release()
		m = other
	}
	t := attempt{model: m.Name}
	req, err := a.q.Ask(m)
	if err != nil {
		return t, err
	}
	if n := a.verdict.Attempts; n > 1 {
		req.Sampling.Seed += uint64(n-1) * 0xbf58476d1ce4e5b9 // far from those of other choices
		if req.Sampling.Temperature == 0 {
			req.Sampling.Temperature = temperature
		}
	}
	if a.believes {
		req.Confidence, t.calibrated = a.temperature(m.Bundle)
	}
	req.Whole = true
	t.res, err = m.Generate(ctx, req, func(p serve.Piece) error {
		t.tokens = append(t.tokens, p.Tokens...)
		return nil
	})
	t.confidence = confidence(a.of, t.res.Probs)
	return t, err
}

// temperature is that of a bundle's confidences, and whether it was fitted.
func (s *Served) temperature(b *bundle.Bundle) (float64, bool) {
	if g := s.entry.Gate; g != nil && g.Temperature > 0 {
		return g.Temperature, true
	}
	return Calibrated(b)
}

// Calibrated is the temperature that a bundle was calibrated to; 1 and false where it was
// not.
func Calibrated(b *bundle.Bundle) (float64, bool) {
	var e struct {
		Calibration metric.Calibration `json:"calibration"`
	}
	if json.Unmarshal(b.Eval, &e) != nil || !(e.Calibration.Temperature >= metric.LeastTemperature/2 && e.Calibration.Temperature <= 2*metric.MostTemperature) {
		return 1, false
	}
	return e.Calibration.Temperature, true
}

// confidence is one number of an answer's tokens' probabilities; 0 where there are none.
func confidence(of string, probs []float64) float64 {
	if len(probs) == 0 {
		return 0
	}
	sum, logs, least := 0.0, 0.0, math.Inf(1)
	for _, p := range probs {
		sum, logs, least = sum+p, logs+math.Log(max(p, math.SmallestNonzeroFloat64)), min(least, p)
	}
	switch of {
	case Geometric:
		return math.Exp(logs / float64(len(probs)))
	case Product:
		return math.Exp(logs)
	case Least:
		return least
	}
	return sum / float64(len(probs))
}

// vote asks all that vote, together.
func (a *asking) vote(ctx context.Context, temperature float64) (attempt, error) {
	over := a.Voters()
	each, errs := make([]attempt, len(over)), make([]error, len(over))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i, name := range over {
		wg.Go(func() {
			if each[i], errs[i] = a.one(ctx, name, temperature); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	var texts []string
	for i, t := range each {
		a.spent += len(t.res.IDs)
		texts = append(texts, t.res.Text)
		if errs[i] != nil {
			return t, context.Cause(ctx) // the first one's
		}
	}
	votes := a.Tally(texts)
	won := votes[0]
	t := each[slices.Index(over, won.Models[0])]
	t.votes = votes
	if a.of == Votes {
		t.confidence = won.Share
	} else {
		t.confidence, t.calibrated = 0, true
		for i, e := range each { // of those that won, by their weights
			if slices.Contains(won.Models, over[i]) {
				t.confidence += e.confidence * a.entry.Vote.Weights[i] / won.Share
				t.calibrated = t.calibrated && e.calibrated
			}
		}
	}
	if d, ok := a.agreed(won); !ok {
		t.decided = &d
	}
	if a.q.Events.Vote != nil {
		a.q.Events.Vote(a.Name, counted(votes, t.decided != nil))
	}
	return t, nil
}

// counted is a vote in one word.
func counted(votes []Ballot, split bool) string {
	switch {
	case split:
		return "split"
	case len(votes) == 1:
		return "unanimous"
	case votes[0].Share > 0.5+1e-9:
		return "majority"
	case votes[1].Share > votes[0].Share-1e-9:
		return "tie"
	}
	return "plurality"
}

// tell counts what a decision was made by.
func (a *asking) tell(d Decision) {
	e := a.q.Events
	for _, f := range d.Fired {
		if e.Rule != nil {
			e.Rule(a.Name, f.Rule, f.Did)
		}
	}
	if e.Gate == nil || a.entry.Gate == nil {
		return
	}
	switch {
	case d.By == "gate" && d.Replaced:
		e.Gate(a.Name, "answer")
	case d.By == "gate":
		e.Gate(a.Name, d.Act)
	case d.Act == Accept && !d.Replaced: // it came that far
		e.Gate(a.Name, "passed")
	}
}

// end makes the answer of the last attempt.
func (a *asking) end(t attempt, d Decision) Answer {
	v := &a.verdict
	v.Model, v.By, v.Reason, v.Votes = t.model, d.By, d.Reason, t.votes
	if a.believes || a.of == Votes {
		v.Confidence, v.Of = &t.confidence, a.of
	}
	if a.believes {
		v.Calibrated = &t.calibrated
	}
	out := Answer{Result: t.res, Computed: a.spent}
	out.IDs, out.Probs = nil, nil
	switch {
	case d.Act == Accept && d.Replaced:
		v.Outcome = Replaced
	case d.Act == Accept && d.Rewritten:
		v.Outcome = Rewritten
	case d.Act == Accept:
		v.Outcome, out.IDs, out.Tokens = Accepted, t.res.IDs, t.tokens
	case d.Act == Abstain:
		v.Outcome = Abstained
	case d.Act == Next && d.By == "gate":
		v.Outcome, v.Reason = Abstained, d.Reason+"; no model is left to ask"
	case d.Act == Next:
		v.Outcome, v.Reason = Rejected, d.Reason+"; no model is left to ask"
	default:
		v.Outcome = Rejected
	}
	out.Text = d.Text
	if v.Withheld() {
		out.Text, out.Reason = "", serve.ReasonPolicy
	}
	if v.Withheld() || v.Outcome == Replaced {
		for i := range v.Votes {
			v.Votes[i].Answer = ""
		}
	}
	if v.Outcome == Replaced {
		out.Reason = serve.ReasonStop
	}
	out.Verdict = *v
	if a.q.Events.Outcome != nil {
		a.q.Events.Outcome(a.Name, v.Outcome)
	}
	return out
}
