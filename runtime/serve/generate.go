package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Request is one text to generate.
type Request struct {
	Prompt  string
	Special bool    // parse special tokens in Prompt: for text the program made, such as a chat template's
	IDs     []int32 // the prompt as ids, used instead of Prompt when not nil

	Context   int // tokens that the model can see; required
	MaxTokens int // most tokens to generate; 0 is until the end of the text or of the context
	EOS       []int32
	Stop      []string // strings that end the text; they are left out of it
	Sampling  Sampling
	MinTokens int     // the text does not end by EOS before so many tokens
	Logprobs  bool    // give each token's log-probability
	Top       int     // with Logprobs: and those of so many of the likeliest
	Grammar   Grammar // confines the text; nil does not
	// Confidence is the temperature at which Result.Probs are to be given: the model's
	// calibration, 1 where it has none; 0 gives none.
	Confidence float64
	Embed      bool // generate nothing: the mean of the prompt's hidden states is wanted; a Scheduler's alone
	Whole      bool // nobody sees pieces before the text has ended: it may be begun again
	Seq        int  // sequence of the decoder to use; a Scheduler chooses it itself
}

// Grammar confines a text, token by token. It belongs to the goroutine that generates.
type Grammar interface {
	// Allowed is the set of tokens that may come next, a bit for each id, and whether the
	// text may end here; valid until Take. Where it may, and nothing may follow, it ends.
	Allowed() (ids []uint64, end bool)
	// Take tells the token that was chosen.
	Take(id int32)
}

// Piece is what a text grew by.
type Piece struct {
	Text   string  // valid UTF-8
	Tokens []Token // with Request.Logprobs: the tokens chosen since the last piece
}

// Token is a token that was chosen.
type Token struct {
	Logprob
	Top []Logprob // the likeliest, the most likely first
}

// Logprob is a token's log-probability by the model, before penalties and filters.
type Logprob struct {
	ID    int32
	Value float64
}

// Defaults is a request as a bundle's generation_config.json asks for it.
func Defaults(b *bundle.Bundle) Request {
	g := b.Generation
	s := Sampling{RepetitionPenalty: g.RepetitionPenalty}
	if g.Sample {
		s.Temperature, s.TopK, s.TopP, s.MinP = g.Temperature, g.TopK, g.TopP, g.MinP
	}
	return Request{Context: b.Arch.Context, MaxTokens: g.MaxNewTokens, EOS: g.EOS, Sampling: s}
}

// Reason is why a text ended.
type Reason string

// Reasons.
const (
	ReasonEOS    Reason = "eos"    // the model ended it
	ReasonStop   Reason = "stop"   // a stop string came
	ReasonLength Reason = "length" // MaxTokens, or the context without MaxTokens
	ReasonPolicy Reason = "policy" // a policy withheld it, see package policy
)

// Result is what was generated; after an error, what came before it.
type Result struct {
	Text         string
	IDs          []int32 // generated tokens, with the one that ended the text
	PromptTokens int
	CachedTokens int       // of the prompt's: computed for an earlier request
	Reason       Reason    // "" after an error
	Probs        []float64 // with Request.Confidence: the model's probability of each of IDs, whatever was allowed or sampled
	Slides       int       // how often the context was full and its older half forgotten
	Embedding    []float32 // of Request.Embed: the mean hidden state, of length 1
}

// ContextError is a prompt that the model can't see whole.
type ContextError struct{ Prompt, Context int } // tokens

func (e *ContextError) Error() string {
	return fmt.Sprintf("the prompt has %d tokens, the model's context is %d: shorten the prompt", e.Prompt, e.Context)
}

// Generate continues the prompt. It calls emit (which may be nil) with each
// piece of text as soon as that is final.
func Generate(ctx context.Context, dec engine.Decoder, tok *token.Tokenizer, req Request, emit func(string) error) (Result, error) {
	if emit == nil {
		emit = func(string) error { return nil }
	}
	g, err := newGeneration(tok, req, func(p Piece) error {
		if p.Text == "" {
			return nil
		}
		return emit(p.Text)
	})
	if err != nil {
		return Result{}, fmt.Errorf("generate: %w", err)
	}
	dec.Drop(req.Seq)
	defer dec.Drop(req.Seq)
	if err := g.run(ctx, dec); err != nil {
		g.res.Reason = ""
		return g.res, fmt.Errorf("generate: %w", err)
	}
	return g.res, nil
}

// generation is one Generate under way.
type generation struct {
	req     Request
	sampler *Sampler
	vocab   int     // ids the tokenizer knows; the model may have more
	bos     bool    // the sequence starts with a BOS, which stays when the context slides
	seq     []int32 // what the model has seen, and the token it is to see next
	decoder *token.Decoder
	stops   stopper
	emit    func(Piece) error
	logits  []float32
	tokens  []Token // chosen, and not in a piece yet
	res     Result
}

func newGeneration(tok *token.Tokenizer, req Request, emit func(Piece) error) (*generation, error) {
	sampler, err := NewSampler(req.Sampling)
	if err != nil {
		return nil, err
	}
	ids := req.IDs
	if ids == nil {
		if b := tok.BOS(); b >= 0 {
			ids = append(ids, b)
		}
		if req.Special {
			ids = tok.EncodeSpecial(ids, req.Prompt)
		} else {
			ids = tok.Encode(ids, req.Prompt)
		}
	}
	switch {
	case req.Context < 2:
		return nil, fmt.Errorf("context is %d, must be at least 2", req.Context)
	case req.MaxTokens < 0:
		return nil, fmt.Errorf("max tokens is %d, must not be negative", req.MaxTokens)
	case !(req.Confidence >= 0):
		return nil, fmt.Errorf("the temperature of the confidence is %g, must not be negative", req.Confidence)
	case req.MinTokens < 0:
		return nil, fmt.Errorf("min tokens is %d, must not be negative", req.MinTokens)
	case len(ids) == 0:
		return nil, errors.New("the prompt is empty and the tokenizer has no beginning-of-text token to start from")
	case len(ids) > req.Context:
		return nil, &ContextError{Prompt: len(ids), Context: req.Context}
	}
	for _, s := range req.Stop {
		if s == "" {
			return nil, errors.New("a stop string is empty")
		}
	}
	g := &generation{
		req: req, sampler: sampler, vocab: tok.VocabSize(), bos: tok.BOS() >= 0 && ids[0] == tok.BOS(),
		seq: append([]int32(nil), ids...), decoder: tok.NewDecoder(false), stops: stopper{stops: req.Stop}, emit: emit,
	}
	g.res.PromptTokens = len(ids)
	g.sampler.Saw(ids...)
	return g, nil
}

func (g *generation) run(ctx context.Context, dec engine.Decoder) error {
	logits, err := dec.Prefill(g.req.Seq, g.seq)
	for {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		done, err2 := g.next(logits)
		if done || err2 != nil {
			return err2
		}
		if dec.Len(g.req.Seq) >= g.req.Context {
			if g.req.MaxTokens == 0 {
				return g.end(ReasonLength)
			}
			g.slide()
			dec.Drop(g.req.Seq)
			logits, err = dec.Prefill(g.req.Seq, g.seq)
			continue
		}
		logits, err = dec.Decode([]int{g.req.Seq}, g.seq[len(g.seq)-1:])
	}
}

// next chooses a token by the logits and says whether the text has ended.
func (g *generation) next(logits []float32) (done bool, err error) {
	open, end := g.open(logits)
	if end {
		return true, g.end(ReasonStop)
	}
	id, err := g.sampler.Next(open)
	if err != nil {
		return true, err
	}
	if g.req.Logprobs && !slices.Contains(g.req.EOS, id) {
		g.tokens = append(g.tokens, logprobs(logits[:min(len(logits), g.vocab)], id, g.req.Top))
	}
	if g.req.Confidence > 0 {
		g.res.Probs = append(g.res.Probs, probability(logits[:min(len(logits), g.vocab)], id, g.req.Confidence))
	}
	if g.req.Grammar != nil {
		g.req.Grammar.Take(id)
	}
	return g.take(id)
}

// open is the logits without the ids that may not be chosen: those that only pad the
// model's vocabulary, those that the grammar forbids, and the end where it is too early.
// It says whether nothing is left to say.
func (g *generation) open(logits []float32) (out []float32, end bool) {
	early := len(g.res.IDs) < g.req.MinTokens
	if len(logits) <= g.vocab && g.req.Grammar == nil && !early {
		return logits, false
	}
	g.logits = append(g.logits[:0], logits...)
	never := float32(math.Inf(-1))
	for i := g.vocab; i < len(g.logits); i++ {
		g.logits[i] = never
	}
	var ids []uint64
	mayEnd := true
	if g.req.Grammar != nil {
		if ids, mayEnd = g.req.Grammar.Allowed(); mayEnd && !slices.ContainsFunc(ids, func(w uint64) bool { return w != 0 }) {
			return nil, true
		}
		for i := range g.logits {
			if ids[i/64]>>(i%64)&1 == 0 {
				g.logits[i] = never
			}
		}
	}
	for _, id := range g.req.EOS {
		switch {
		case early || !mayEnd:
			g.logits[id] = never
		case g.req.Grammar != nil:
			g.logits[id] = logits[id]
		}
	}
	return g.logits, false
}

// probability is a token's at a temperature.
func probability(logits []float32, id int32, temperature float64) float64 {
	at, sum := float64(logits[id]), 0.0
	for _, v := range logits {
		sum += math.Exp((float64(v) - at) / temperature)
	}
	return 1 / sum
}

// logprobs is a token with its log-probability and the top likeliest.
func logprobs(logits []float32, id int32, top int) Token {
	highest := float64(slices.Max(logits))
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - highest)
	}
	norm := highest + math.Log(sum)
	t := Token{Logprob: Logprob{ID: id, Value: float64(logits[id]) - norm}}
	for i, v := range logits {
		if n := len(t.Top); n < top || top > 0 && float64(v)-norm > t.Top[n-1].Value {
			p := Logprob{ID: int32(i), Value: float64(v) - norm}
			at, _ := slices.BinarySearchFunc(t.Top, p, func(a, b Logprob) int {
				if a.Value >= b.Value {
					return -1 // equals stay in the order of ids
				}
				return 1
			})
			t.Top = slices.Insert(t.Top, at, p)[:min(n+1, top)]
		}
	}
	return t
}

// slide forgets all but the last half of a full context.
func (g *generation) slide() {
	keep := max(1, g.req.Context/2)
	if g.bos && keep > 1 {
		g.seq = append(g.seq[:1], g.seq[len(g.seq)-keep+1:]...)
	} else {
		g.seq = append(g.seq[:0], g.seq[len(g.seq)-keep:]...)
	}
	g.res.Slides++
}

// take adds a chosen token and says whether the text has ended.
func (g *generation) take(id int32) (done bool, err error) {
	g.seq = append(g.seq, id)
	g.res.IDs = append(g.res.IDs, id)
	for _, eos := range g.req.EOS {
		if id == eos {
			return true, g.end(ReasonEOS)
		}
	}
	text, stopped := g.stops.push(g.decoder.Push(id))
	if stopped {
		g.res.Reason = ReasonStop
	}
	if err := g.send(text); stopped || err != nil {
		return true, err
	}
	if len(g.res.IDs) == g.req.MaxTokens {
		return true, g.end(ReasonLength)
	}
	return false, nil
}

// end emits what was held back.
func (g *generation) end(why Reason) error {
	text, stopped := g.stops.push(g.decoder.Flush())
	if stopped {
		why = ReasonStop
	} else {
		text += g.stops.held
	}
	g.res.Reason = why
	return g.send(text)
}

func (g *generation) send(text string) error {
	if text == "" && (g.res.Reason == "" || len(g.tokens) == 0) {
		return nil
	}
	p := Piece{Text: text, Tokens: g.tokens}
	g.tokens = nil
	g.res.Text += text
	return g.emit(p)
}

// stopper looks for stop strings in a text that comes in pieces.
type stopper struct {
	stops []string
	held  string // the end of the text, with which a stop string may have begun
}

// push adds text and returns what is final. After stopped it returns what stood
// before the stop string that starts first.
func (s *stopper) push(text string) (final string, stopped bool) {
	s.held += text
	at := -1
	for _, stop := range s.stops {
		if i := strings.Index(s.held, stop); i >= 0 && (at < 0 || i < at) {
			at = i
		}
	}
	if at >= 0 {
		final, s.held = s.held[:at], ""
		return final, true
	}
	hold := 0
	for _, stop := range s.stops {
		for n := min(len(stop)-1, len(s.held)); n > hold; n-- {
			if strings.HasSuffix(s.held, stop[:n]) {
				hold = n
			}
		}
	}
	cut := len(s.held) - hold
	final, s.held = s.held[:cut], s.held[cut:]
	return final, false
}
