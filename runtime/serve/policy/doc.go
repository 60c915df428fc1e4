// Package policy decides what becomes of answers before anybody gets them: rules that
// refuse or rewrite, a gate on how sure the model was, and votes of several models.
//
//	p, err := policy.Load("policy.yaml") // compiled, its tests run
//	s := p.Find("chat")                  // what holds for that served name; nil is nothing
//	a, err := s.Answer(ctx, policy.Question{Models: hub, Lead: m, Prompt: text, Ask: func(m *serve.Model) (serve.Request, error) { … }})
//	a.Text, a.Verdict.Outcome, a.Verdict.Reason
//
// A Keeper holds the policy of a running server beside its Hub, and reads it anew.
//
// A file names, for each served name, who answers, and what is done with an answer:
//
//	models:
//	  chat:                                  # a bundle that is served under that name
//	    rules:                               # in order; each may end the matter
//	      - {name: empty, when: answer.trim() == "", then: {retry: 2}}
//	      - {name: json, when: json == null, then: next}
//	      - {name: shout, when: 'answer.matches("^[A-Z !]+$")', then: {rewrite: answer.lowerAscii()}}
//	    gate: {confidence: 0.6, below: abstain}
//	    next: [large]
//	    tests:
//	      - {answer: "HELLO", want: {answer: hello}}
//	      - {answer: hello, confidence: 0.5, want: abstain}
//	  panel:                                 # a name of its own
//	    vote: {over: [chat, large], kind: majority}
//
// Rules are written in CEL, over prompt, answer, model, confidence, tokens, finish (stop or
// length), attempt (1, 2, …) and json (what the answer parses to, null where it is no
// JSON). Beside CEL's standard functions there are trim, lowerAscii, upperAscii, replace,
// split, join, substring, indexOf and words. Patterns of matches are RE2's, written out. A rule does nothing, or
//
//	reject               the answer is withheld
//	{answer: TEXT}       this is said in its place; later rules are not asked
//	{rewrite: CEL}       the text that the expression makes goes on to the next rule
//	{retry: N}           asked again with another seed, N times at most, then else: (reject)
//	next                 the next of the models under next: is asked
//	{model: NAME}        that one is
//
// A rule that can't be evaluated rejects (errors: pass lets the answer go on). An answer
// from another model goes through the same rules and the same gate. No model is asked
// twice but by a retry or after a vote, and all no more than MaxAttempts times.
//
// The gate looks at a confidence: the mean probability of the answer's tokens (of: mean),
// that of the whole (product), its tokens' geometric mean (geometric), the least (least), or
// the share of the votes (votes). Probabilities are the model's own at the temperature to
// which it was calibrated (metric.Calibration, written by autoglm calibrate), whatever
// sampling, penalties or a grammar made of them. Warnings names the gates whose models
// have no calibration.
//
// Votes on whole answers (majority, weighted) ask every model and compare answers by
// their class, metric.Class: of several texts of one class that of the first model is given.
// The most votes win; ties go to the model that stands first. Soft votes are of models
// with one tokenizer: a Mixture averages the probabilities of each next token, and is served
// like any other model. It holds weights and caches of its own for each.
//
// What may yet be withheld can't be streamed as it comes: a name that has rules, a gate or
// a vote on whole answers answers once all is decided, and its streams are one piece.
//
// The caller's duties: Question.Ask makes a new request each time, and the models that it
// is given are used while Answer runs alone.
//
// Invariants: no expression of a rule can hang the server or make it grow: files, texts,
// expressions and what each may cost are bounded. The text of an answer that was withheld
// is in no part of an Answer. A file whose tests fail is never served.
package policy
