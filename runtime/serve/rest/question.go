package rest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
)

// question is what is asked of a served name: of its model, or of those that its policy
// asks.
type question struct {
	*serve.Model                // the one that answers, or votes, first
	name         string         // that it is served under
	served       *policy.Served // nil lets the model's answer stand
	release      func()         // to be called at the end
	build        func(m *serve.Model) ([]serve.Request, error)
	prompts      []string // of the requests that build makes, as rules see them
}

// answer is one text with what a policy decided; verdict is nil where there is none.
type answer struct {
	serve.Result
	tokens   []serve.Token
	computed int // tokens
	verdict  *policy.Verdict
}

// kept tells whether a text is the model's as it is, so that its tokens are its own.
func (a *answer) kept() bool { return a.verdict == nil || a.verdict.Kept() }

// ask finds who answers to a name, which may end in @VERSION.
func (s *Server) ask(name string) (*question, error) {
	version := ""
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		name, version = name[:i], name[i+1:]
	}
	q, err := s.find(name, version)
	if err != nil && name == "" {
		err = invalid("model", "give model: GET /v1/models lists those that are served")
	}
	return q, err
}

func (s *Server) find(name, version string) (*question, error) {
	q := &question{name: name}
	p := s.policy()
	if q.served = p.Find(name); q.served != nil {
		if voters := q.served.Voters(); voters != nil {
			name = voters[0]
		}
	}
	var err error
	if q.Model, q.release, err = s.cfg.Hub.Get(name, version); err != nil {
		return nil, err
	}
	if q.name == "" {
		q.name = q.Name
	}
	q.served = p.Find(q.name)
	if !q.served.Decides() {
		q.served = nil
	}
	return q, nil
}

func (s *Server) policy() *policy.Policy {
	if s.cfg.Policy == nil {
		return nil
	}
	return s.cfg.Policy()
}

// voting are the names that a policy serves beside the hub's: votes on whole answers.
func (s *Server) voting() []string {
	p := s.policy()
	var out []string
	for _, name := range p.Names() {
		if p.Find(name).Voters() != nil {
			out = append(out, name)
		}
	}
	return out
}

// requests are those of q's own model.
func (q *question) requests() ([]serve.Request, error) { return q.build(q.Model) }

// seeded gives a request that names no seed one, so that all who are asked have the same.
func (c *common) seeded() {
	if c.Seed == nil {
		seed := rand.Int64()
		c.Seed = &seed
	}
}

// generate answers all requests together. emit, and end (which may be nil) after the last
// piece, are called by one goroutine for each of them; the first error ends all.
func (s *Server) generate(ctx context.Context, q *question, reqs []serve.Request, emit func(i int, p serve.Piece) error, end func(i int, a answer) error) ([]answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answers := make([]answer, len(reqs))
	var wg sync.WaitGroup
	for i, req := range reqs {
		wg.Go(func() {
			var err error
			if q.served == nil {
				answers[i].Result, err = q.Generate(ctx, req, func(p serve.Piece) error {
					answers[i].tokens = append(answers[i].tokens, p.Tokens...)
					return emit(i, p)
				})
				answers[i].computed = len(answers[i].IDs)
			} else {
				answers[i], err = s.decide(ctx, q, i, req, emit)
			}
			if err == nil && end != nil {
				err = end(i, answers[i])
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	err := context.Cause(ctx)
	var busy *serve.BusyError
	if errors.As(err, &busy) {
		s.cfg.Metrics.Refused(q.Name)
	}
	return answers, err
}

// decide lets the policy answer request i, the first form of which is req: its text comes
// as one piece, once nothing can be withheld any more.
func (s *Server) decide(ctx context.Context, q *question, i int, req serve.Request, emit func(i int, p serve.Piece) error) (answer, error) {
	var mu sync.Mutex // those that vote ask together
	first := true
	out, err := q.served.Answer(ctx, policy.Question{
		Models: s.cfg.Hub, Lead: q.Model, Prompt: q.prompts[i], Events: s.cfg.Metrics.Policy(),
		Ask: func(m *serve.Model) (serve.Request, error) {
			mu.Lock()
			defer mu.Unlock()
			if first && m == q.Model {
				first = false
				return req, nil
			}
			all, err := q.build(m)
			if err != nil {
				return serve.Request{}, err
			}
			return all[i], nil
		},
	})
	a := answer{Result: out.Result, tokens: out.Tokens, computed: out.Computed, verdict: &out.Verdict}
	if err == nil && (out.Text != "" || len(out.Tokens) > 0) {
		err = emit(i, serve.Piece{Text: out.Text, Tokens: out.Tokens})
	}
	return a, err
}

// whole answers all requests together, once all are done.
func (s *Server) whole(r *http.Request, q *question, reqs []serve.Request) ([]answer, error) {
	for i := range reqs {
		reqs[i].Whole = true
	}
	return s.generate(r.Context(), q, reqs, func(int, serve.Piece) error { return nil }, nil)
}
