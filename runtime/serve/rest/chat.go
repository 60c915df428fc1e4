package rest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/token"
)

type chatRequest struct {
	common
	Messages            []chatMessage `json:"messages"`
	MaxCompletionTokens *int          `json:"max_completion_tokens"`
	Logprobs            bool          `json:"logprobs"`
	TopLogprobs         *int          `json:"top_logprobs"`

	// What would change the answer and is not supported; empty values are let pass.
	Tools             json.RawMessage `json:"tools"`
	ToolChoice        json.RawMessage `json:"tool_choice"`
	ParallelToolCalls json.RawMessage `json:"parallel_tool_calls"`
	Functions         json.RawMessage `json:"functions"`
	FunctionCall      json.RawMessage `json:"function_call"`
	Modalities        json.RawMessage `json:"modalities"`
	Audio             json.RawMessage `json:"audio"`
	Prediction        json.RawMessage `json:"prediction"`
	ReasoningEffort   json.RawMessage `json:"reasoning_effort"`
	WebSearchOptions  json.RawMessage `json:"web_search_options"`
	Verbosity         json.RawMessage `json:"verbosity"`
}

// refused is the first field that is set and not supported.
func (c *chatRequest) refused() error {
	for _, f := range []struct {
		name  string
		value json.RawMessage
		pass  []string
	}{
		{"tools", c.Tools, []string{"[]"}},
		{"tool_choice", c.ToolChoice, []string{`"none"`, `"auto"`}},
		{"parallel_tool_calls", c.ParallelToolCalls, []string{"true", "false"}},
		{"functions", c.Functions, []string{"[]"}},
		{"function_call", c.FunctionCall, []string{`"none"`, `"auto"`}},
		{"modalities", c.Modalities, []string{`["text"]`}},
		{"audio", c.Audio, nil},
		{"prediction", c.Prediction, nil},
		{"reasoning_effort", c.ReasoningEffort, nil},
		{"web_search_options", c.WebSearchOptions, nil},
		{"verbosity", c.Verbosity, nil},
	} {
		value := strings.Join(strings.Fields(string(f.value)), "")
		ok := value == "" || value == "null"
		for _, p := range f.pass {
			ok = ok || value == p
		}
		if !ok {
			return unsupported(f.name)
		}
	}
	return nil
}

type chatMessage struct {
	Role    string      `json:"role"`
	Content chatContent `json:"content"`
	Name    string      `json:"name"`
	Refusal *string     `json:"refusal"`

	ToolCalls  json.RawMessage `json:"tool_calls"`
	ToolCallID json.RawMessage `json:"tool_call_id"`
}

// chatContent is a text, or parts of one.
type chatContent string

func (c *chatContent) UnmarshalJSON(b []byte) error {
	var text *string
	if json.Unmarshal(b, &text) == nil {
		if text != nil {
			*c = chatContent(*text)
		}
		return nil
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return invalid("messages", "a message's content is neither a text nor a list of parts")
	}
	for _, p := range parts {
		if p.Type != "text" {
			return invalid("messages", "a message has a part of type %q; only text is supported here", clip(p.Type))
		}
		*c += chatContent(p.Text)
	}
	return nil
}

type chatCompletion struct {
	ID          string       `json:"id"`
	Object      string       `json:"object"`
	Created     int64        `json:"created"`
	Model       string       `json:"model"`
	Fingerprint string       `json:"system_fingerprint"`
	Choices     []chatChoice `json:"choices"`
	Usage       *usage       `json:"usage,omitempty"`
}

type chatChoice struct {
	Index    int         `json:"index"`
	Message  *chatAnswer `json:"message,omitempty"`
	Delta    *chatDelta  `json:"delta,omitempty"`
	Logprobs *chatProbs  `json:"logprobs"`
	Finish   *string     `json:"finish_reason"`

	Verdict *policy.Verdict `json:"autoglm,omitempty"`
}

type chatAnswer struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"`
}

type chatDelta struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
	Refusal *string `json:"refusal,omitempty"`
}

type chatProbs struct {
	Content []chatToken `json:"content"`
}

type chatToken struct {
	chatProb
	Top []chatProb `json:"top_logprobs"`
}

type chatProb struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

func newChatProbs(tok *token.Tokenizer, tokens []serve.Token) *chatProbs {
	one := func(l serve.Logprob) chatProb {
		symbol := tok.Symbol(l.ID)
		p := chatProb{Token: token.ValidUTF8(symbol), Logprob: l.Value, Bytes: []int{}}
		for i := range len(symbol) {
			p.Bytes = append(p.Bytes, int(symbol[i]))
		}
		return p
	}
	out := &chatProbs{Content: []chatToken{}}
	for _, t := range tokens {
		c := chatToken{chatProb: one(t.Logprob), Top: []chatProb{}}
		for _, o := range t.Top {
			c.Top = append(c.Top, one(o))
		}
		out.Content = append(out.Content, c)
	}
	return out
}

// conversation is the messages as the chat template knows them.
func conversation(in []chatMessage) ([]serve.Message, error) {
	if len(in) == 0 {
		return nil, invalid("messages", "give messages")
	}
	var out []serve.Message
	for i, m := range in {
		field := fmt.Sprintf("messages[%d]", i)
		switch m.Role {
		case "developer":
			m.Role = "system"
		case "system", "user", "assistant":
		default:
			return nil, invalid(field+".role", "%s.role is %q; system, developer, user and assistant are known here", field, clip(m.Role))
		}
		if len(m.ToolCalls) > 0 && string(m.ToolCalls) != "null" && string(m.ToolCalls) != "[]" {
			return nil, unsupported(field + ".tool_calls")
		}
		if len(m.ToolCallID) > 0 && string(m.ToolCallID) != "null" {
			return nil, unsupported(field + ".tool_call_id")
		}
		out = append(out, serve.Message{Role: m.Role, Content: string(m.Content)})
	}
	return out, nil
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) error {
	var in chatRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := in.refused(); err != nil {
		return err
	}
	messages, err := conversation(in.Messages)
	if err != nil {
		return err
	}
	q, err := s.ask(in.Model)
	if err != nil {
		return err
	}
	defer q.release()
	in.seeded()
	q.build = func(m *serve.Model) ([]serve.Request, error) { return in.requests(m, messages) }
	reqs, err := q.requests()
	if err != nil {
		return err
	}
	for range reqs {
		q.prompts = append(q.prompts, lastSaid(messages))
	}
	tok := q.Bundle.Tokenizer
	head := chatCompletion{ID: newID("chatcmpl"), Object: "chat.completion", Created: time.Now().Unix(), Model: q.name, Fingerprint: "version " + q.Version}
	if in.Stream {
		head.Object = "chat.completion.chunk"
		return s.streamed(w, r, q, in.StreamOptions, len(reqs), reqs, events{
			first: func(i int) any {
				c := head
				c.Choices = []chatChoice{{Index: i, Delta: &chatDelta{Role: "assistant", Content: ptr("")}}}
				return c
			},
			piece: func(i int, p serve.Piece) any {
				choice := chatChoice{Index: i, Delta: &chatDelta{Content: &p.Text}}
				if in.Logprobs {
					choice.Logprobs = newChatProbs(tok, p.Tokens)
				}
				c := head
				c.Choices = []chatChoice{choice}
				return c
			},
			last: func(i int, a answer) any {
				c := head
				c.Choices = []chatChoice{{Index: i, Delta: &chatDelta{Refusal: a.refusal()}, Finish: finishReason(a.Reason), Verdict: a.verdict}}
				return c
			},
			usage: func(u *usage) any {
				c := head
				c.Choices, c.Usage = []chatChoice{}, u
				return c
			},
		})
	}
	answers, err := s.whole(r, q, reqs)
	if err != nil {
		return err
	}
	for i, a := range answers {
		choice := chatChoice{Index: i, Message: &chatAnswer{Role: "assistant", Content: a.Text, Refusal: a.refusal()}, Finish: finishReason(a.Reason), Verdict: a.verdict}
		if in.Logprobs && a.kept() {
			choice.Logprobs = newChatProbs(tok, a.tokens)
		}
		head.Choices = append(head.Choices, choice)
	}
	head.Usage = usageOf(answers, len(reqs))
	writeJSON(w, http.StatusOK, head)
	return nil
}

// requests are those of a model, one for each choice.
func (c *chatRequest) requests(m *serve.Model, messages []serve.Message) ([]serve.Request, error) {
	maxTokens := c.MaxCompletionTokens
	if maxTokens == nil {
		maxTokens = c.MaxTokens
	}
	req, err := c.request(m.Bundle, maxTokens)
	if err != nil {
		return nil, err
	}
	switch {
	case c.TopLogprobs != nil && !c.Logprobs:
		return nil, invalid("top_logprobs", "top_logprobs needs logprobs: true")
	case c.TopLogprobs != nil && (*c.TopLogprobs < 0 || *c.TopLogprobs > 20):
		return nil, invalid("top_logprobs", "top_logprobs is %d, must be in 0 to 20", *c.TopLogprobs)
	}
	req.Logprobs = c.Logprobs
	if c.TopLogprobs != nil {
		req.Top = *c.TopLogprobs
	}
	grammar, err := c.grammar(m)
	if err != nil {
		return nil, err
	}
	if req.IDs, err = serve.ChatIDs(m.Bundle, messages); err != nil {
		return nil, err
	}
	return c.copies(req, grammar), nil
}

// lastSaid is what the user said last, as rules see it.
func lastSaid(messages []serve.Message) string {
	for _, m := range slices.Backward(messages) {
		if m.Role == "user" {
			return m.Content
		}
	}
	return ""
}

// refusal is why nothing is said; nil where something is.
func (a *answer) refusal() *string {
	if a.verdict == nil || !a.verdict.Withheld() {
		return nil
	}
	return &a.verdict.Reason
}
