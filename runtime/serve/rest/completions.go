package rest

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/token"
)

type completionRequest struct {
	common
	Prompt   prompts `json:"prompt"`
	Logprobs *int    `json:"logprobs"`
	Echo     bool    `json:"echo"`
	BestOf   *int    `json:"best_of"`
	Suffix   *string `json:"suffix"`
}

// prompts are texts, or tokens: one or several.
type prompts struct {
	texts []string
	ids   [][]int32
}

func (p *prompts) UnmarshalJSON(b []byte) error {
	*p = prompts{}
	var one string
	var ids []int32
	switch {
	case json.Unmarshal(b, &one) == nil && string(b) != "null":
		p.texts = []string{one}
	case json.Unmarshal(b, &p.texts) == nil && len(p.texts) > 0:
	case json.Unmarshal(b, &ids) == nil && len(ids) > 0:
		p.texts, p.ids = nil, [][]int32{ids}
	case json.Unmarshal(b, &p.ids) == nil && len(p.ids) > 0:
		p.texts = nil
	default:
		return invalid("", "a prompt, or input, is no text, no list of texts, no list of tokens and no list of such lists")
	}
	return nil
}

// requests are base with each prompt, and the prompts as texts; field is what they came in.
func (p prompts) requests(field string, m *serve.Model, base serve.Request) (reqs []serve.Request, texts []string, err error) {
	switch n := len(p.texts) + len(p.ids); {
	case n == 0:
		return nil, nil, invalid(field, "give %s", field)
	case n > maxPrompts:
		return nil, nil, invalid(field, "%d texts, at most %d are taken", n, maxPrompts)
	}
	for _, text := range p.texts {
		base.Prompt = text
		reqs, texts = append(reqs, base), append(texts, text)
	}
	for _, ids := range p.ids {
		for _, id := range ids {
			if id < 0 || int(id) >= m.Bundle.Tokenizer.VocabSize() {
				return nil, nil, invalid(field, "%s: %d is no token of this model", field, id)
			}
		}
		if len(ids) == 0 {
			return nil, nil, invalid(field, "%s: a list of tokens is empty", field)
		}
		base.IDs = ids
		reqs, texts = append(reqs, base), append(texts, token.ValidUTF8(m.Bundle.Tokenizer.Decode(ids)))
	}
	return reqs, texts, nil
}

type usage struct {
	Prompt     int          `json:"prompt_tokens"`
	Completion int          `json:"completion_tokens"`
	Total      int          `json:"total_tokens"`
	Details    usageDetails `json:"prompt_tokens_details"`
}

type usageDetails struct {
	Cached int `json:"cached_tokens"`
}

// usageOf sums results, of which choices share a prompt.
func usageOf(all []answer, choices int) *usage {
	var u usage
	for i, r := range all {
		if i%choices == 0 {
			u.Prompt += r.PromptTokens
			u.Details.Cached += r.CachedTokens
		}
		u.Completion += r.computed
	}
	u.Total = u.Prompt + u.Completion
	return &u
}

// finishReason is a reason by OpenAI's name.
func finishReason(r serve.Reason) *string {
	name := "stop"
	switch r {
	case serve.ReasonLength:
		name = "length"
	case serve.ReasonPolicy:
		name = "content_filter"
	}
	return &name
}

type completion struct {
	ID          string             `json:"id"`
	Object      string             `json:"object"`
	Created     int64              `json:"created"`
	Model       string             `json:"model"`
	Fingerprint string             `json:"system_fingerprint"`
	Choices     []completionChoice `json:"choices"`
	Usage       *usage             `json:"usage,omitempty"`
}

type completionChoice struct {
	Index    int              `json:"index"`
	Text     string           `json:"text"`
	Logprobs *completionProbs `json:"logprobs"`
	Finish   *string          `json:"finish_reason"`
	Verdict  *policy.Verdict  `json:"autoglm,omitempty"`
}

type completionProbs struct {
	Tokens  []string             `json:"tokens"`
	Values  []float64            `json:"token_logprobs"`
	Top     []map[string]float64 `json:"top_logprobs"`
	Offsets []int                `json:"text_offset"`
}

// add appends tokens that begin at the character offset, and returns where they end.
func (p *completionProbs) add(tok *token.Tokenizer, tokens []serve.Token, offset int) int {
	for _, t := range tokens {
		text := token.ValidUTF8(tok.Symbol(t.ID))
		top := map[string]float64{}
		for _, o := range t.Top {
			top[token.ValidUTF8(tok.Symbol(o.ID))] = o.Value
		}
		p.Tokens, p.Values, p.Top, p.Offsets = append(p.Tokens, text), append(p.Values, t.Value), append(p.Top, top), append(p.Offsets, offset)
		offset += utf8.RuneCountInString(text)
	}
	return offset
}

// maxPrompts bounds the prompts of a request.
const maxPrompts = 64

func (s *Server) completions(w http.ResponseWriter, r *http.Request) error {
	var in completionRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	q, err := s.ask(in.Model)
	if err != nil {
		return err
	}
	defer q.release()
	in.seeded()
	q.build = func(m *serve.Model) ([]serve.Request, error) {
		reqs, _, err := in.requests(m)
		return reqs, err
	}
	reqs, echo, err := in.requests(q.Model)
	if err != nil {
		return err
	}
	n := in.choices()
	for i := range reqs {
		q.prompts = append(q.prompts, echo[i/n])
	}
	tok := q.Bundle.Tokenizer
	logprobs := in.Logprobs != nil
	head := completion{ID: newID("cmpl"), Object: "text_completion", Created: time.Now().Unix(), Model: q.name, Fingerprint: "version " + q.Version}
	if in.Stream {
		return s.streamed(w, r, q, in.StreamOptions, n, reqs, events{
			first: func(i int) any {
				if !in.Echo {
					return nil
				}
				c := head
				c.Choices = []completionChoice{{Index: i, Text: echo[i/n]}}
				return c
			},
			piece: func() func(i int, p serve.Piece) any {
				offsets := make([]int, len(reqs))
				return func(i int, p serve.Piece) any {
					choice := completionChoice{Index: i, Text: p.Text}
					if logprobs {
						choice.Logprobs = &completionProbs{}
						offsets[i] = choice.Logprobs.add(tok, p.Tokens, offsets[i])
					}
					c := head
					c.Choices = []completionChoice{choice}
					return c
				}
			}(),
			last: func(i int, a answer) any {
				c := head
				c.Choices = []completionChoice{{Index: i, Finish: finishReason(a.Reason), Verdict: a.verdict}}
				return c
			},
			usage: func(u *usage) any {
				c := head
				c.Choices, c.Usage = []completionChoice{}, u
				return c
			},
		})
	}
	answers, err := s.whole(r, q, reqs)
	if err != nil {
		return err
	}
	for i, a := range answers {
		choice := completionChoice{Index: i, Text: a.Text, Finish: finishReason(a.Reason), Verdict: a.verdict}
		if in.Echo {
			choice.Text = echo[i/n] + choice.Text
		}
		if logprobs && a.kept() {
			choice.Logprobs = &completionProbs{}
			choice.Logprobs.add(tok, a.tokens, 0)
		}
		head.Choices = append(head.Choices, choice)
	}
	head.Usage = usageOf(answers, n)
	writeJSON(w, http.StatusOK, head)
	return nil
}

// requests are those of a model, a prompt's choices one after the other, and the prompts.
func (c *completionRequest) requests(m *serve.Model) (reqs []serve.Request, echo []string, err error) {
	maxTokens := c.MaxTokens
	if maxTokens == nil {
		maxTokens = ptr(16) // as OpenAI does
	}
	base, err := c.request(m.Bundle, maxTokens)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case c.BestOf != nil && *c.BestOf != c.choices():
		return nil, nil, unsupported("best_of")
	case c.Suffix != nil && *c.Suffix != "":
		return nil, nil, unsupported("suffix")
	case c.Logprobs != nil && (*c.Logprobs < 0 || *c.Logprobs > 20):
		return nil, nil, invalid("logprobs", "logprobs is %d, must be in 0 to 20", *c.Logprobs)
	case c.Logprobs != nil && c.Echo:
		return nil, nil, invalid("echo", "echo with logprobs is not supported here; leave one out")
	}
	if c.Logprobs != nil {
		base.Logprobs, base.Top = true, *c.Logprobs
	}
	grammar, err := c.grammar(m)
	if err != nil {
		return nil, nil, err
	}
	each, echo, err := c.Prompt.requests("prompt", m, base)
	if err != nil {
		return nil, nil, err
	}
	for _, req := range each {
		reqs = append(reqs, c.copies(req, grammar)...)
	}
	return reqs, echo, nil
}

func ptr[T any](v T) *T { return &v }

// grammar is response_format's, for a model.
func (c *common) grammar(m *serve.Model) (func() serve.Grammar, error) {
	f, err := c.ResponseFormat.grammar(m)
	if f != nil && len(c.Stop) > 0 {
		return nil, invalid("stop", "stop could cut the JSON that response_format asks for; leave one out")
	}
	return f, err
}

// copies are a request for each choice; the first has the seed that was asked for, or
// that seeded gave.
func (c *common) copies(req serve.Request, grammar func() serve.Grammar) []serve.Request {
	c.seeded()
	seed := uint64(*c.Seed)
	out := make([]serve.Request, c.choices())
	for i := range out {
		out[i] = req
		out[i].Sampling.Seed = seed + uint64(i)*0x9e3779b97f4a7c15 // far from the seeds that others ask for
		if grammar != nil {
			out[i].Grammar = grammar()
		}
	}
	return out
}

// events are what a stream is made of.
type events struct {
	first func(i int) any // of choice i; nil is none
	piece func(i int, p serve.Piece) any
	last  func(i int, a answer) any
	usage func(u *usage) any
}

// streamed answers with server-sent events. n requests each share a prompt.
func (s *Server) streamed(w http.ResponseWriter, r *http.Request, q *question, o *streamOptions, n int, reqs []serve.Request, e events) error {
	st := newStream(w, s.cfg.Ping)
	defer st.close()
	begun := make([]bool, len(reqs)) // each by its own goroutine
	begin := func(i int) error {
		if begun[i] {
			return nil
		}
		begun[i] = true
		if v := e.first(i); v != nil {
			return st.send(v)
		}
		return nil
	}
	answers, err := s.generate(r.Context(), q, reqs, func(i int, p serve.Piece) error {
		if err := begin(i); err != nil {
			return err
		}
		return st.send(e.piece(i, p))
	}, func(i int, a answer) error { return errors.Join(begin(i), st.send(e.last(i, a))) })
	if err != nil {
		return st.finish(err)
	}
	if o != nil && o.IncludeUsage {
		if err := st.send(e.usage(usageOf(answers, n))); err != nil {
			return st.finish(err)
		}
	}
	return st.finish(nil)
}
