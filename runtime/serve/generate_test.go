package serve

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/token/tokentest"
)

// script is a Decoder that wants to say a text: the n-th token after the prompt
// of every sequence gets the highest logit. It holds the contract to account.
type script struct {
	t       *testing.T
	vocab   int
	context int
	say     []int32
	said    int
	seqs    map[int][]int32
	longest int
}

func (s *script) Prefill(seq int, ids []int32) ([]float32, error) {
	s.seqs[seq] = append(s.seqs[seq], ids...)
	return s.logits(seq)
}

func (s *script) Decode(seqs []int, ids []int32) ([]float32, error) {
	s.seqs[seqs[0]] = append(s.seqs[seqs[0]], ids[0])
	return s.logits(seqs[0])
}

func (s *script) logits(seq int) ([]float32, error) {
	n := len(s.seqs[seq])
	if n > s.context {
		s.t.Errorf("the sequence has %d tokens, the context %d", n, s.context)
	}
	s.longest = max(s.longest, n)
	out := make([]float32, s.vocab)
	if s.said < len(s.say) {
		out[s.say[s.said]] = 10
	}
	s.said++
	return out, nil
}

func (s *script) Len(seq int) int { return len(s.seqs[seq]) }
func (s *script) Drop(seq int)    { delete(s.seqs, seq) }
func (s *script) Close() error    { return nil }

func tinyTokenizer(t testing.TB) *token.Tokenizer {
	t.Helper()
	return tokentest.Tiny(t, 320)
}

func scripted(t *testing.T, tok *token.Tokenizer, contextSize int, say ...int32) *script {
	return &script{t: t, vocab: tok.VocabSize() + 4, context: contextSize, say: say, seqs: map[int][]int32{}}
}

func TestGenerateEnds(t *testing.T) {
	tok := tinyTokenizer(t)
	say := tok.Encode(nil, "the dog 你 sleeps STOP here")
	base := Request{Prompt: "Once", Context: 100, MaxTokens: 90, EOS: []int32{token.EndOfTextID}}
	for name, c := range map[string]struct {
		say    []int32
		change func(*Request)
		text   string
		reason Reason
	}{
		"eos":             {append(slices.Clone(say), token.EndOfTextID), func(*Request) {}, "the dog 你 sleeps STOP here", ReasonEOS},
		"length":          {say, func(r *Request) { r.MaxTokens = 1 }, tok.Decode(say[:1]), ReasonLength},
		"stop":            {say, func(r *Request) { r.Stop = []string{"nope", " STOP"} }, "the dog 你 sleeps", ReasonStop},
		"stop over piece": {say, func(r *Request) { r.Stop = []string{"s STOP h"} }, "the dog 你 sleep", ReasonStop},
		"two stops":       {say, func(r *Request) { r.Stop = []string{"here", "dog"} }, "the ", ReasonStop},
		"begun stop":      {append(slices.Clone(say), token.EndOfTextID), func(r *Request) { r.Stop = []string{"here!"} }, "the dog 你 sleeps STOP here", ReasonEOS},
		"half character":  {tok.Encode(nil, "x\xe4\xbd"), func(r *Request) { r.MaxTokens = 3 }, "x\ufffd", ReasonLength},
		"no special text": {append([]int32{token.UserID}, append(slices.Clone(say[:1]), token.EndOfTextID)...), func(*Request) {}, tok.Decode(say[:1]), ReasonEOS},
	} {
		t.Run(name, func(t *testing.T) {
			req := base
			c.change(&req)
			var b strings.Builder
			dec := scripted(t, tok, req.Context, c.say...)
			res, err := Generate(t.Context(), dec, tok, req, func(s string) error {
				if s == "" || !utf8.ValidString(s) {
					t.Errorf("emitted %q", s)
				}
				b.WriteString(s)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if res.Text != c.text || b.String() != c.text || res.Reason != c.reason {
				t.Errorf("got %q (emitted %q) for %s, want %q for %s", res.Text, b.String(), res.Reason, c.text, c.reason)
			}
			if len(dec.seqs) != 0 {
				t.Error("the sequence was not dropped")
			}
			if want := len(tok.Encode(nil, "Once")) + 1; res.PromptTokens != want {
				t.Errorf("%d prompt tokens, want %d", res.PromptTokens, want)
			}
		})
	}
}

func TestGenerateSlides(t *testing.T) {
	tok := tinyTokenizer(t)
	var say []int32
	for len(say) < 100 {
		say = tok.Encode(say, " fox dog")
	}
	say = say[:100]
	dec := scripted(t, tok, 16, say...)
	res, err := Generate(t.Context(), dec, tok, Request{Prompt: "The", Context: 16, MaxTokens: 100}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(res.IDs, say) || res.Slides < 5 || dec.longest != 16 {
		t.Errorf("%d tokens, %d slides, longest %d", len(res.IDs), res.Slides, dec.longest)
	}
	res, err = Generate(t.Context(), scripted(t, tok, 16, say...), tok, Request{Prompt: "The", Context: 16}, nil)
	if err != nil || res.Slides != 0 || res.Reason != ReasonLength || len(res.IDs)+res.PromptTokens != 17 {
		t.Errorf("without max tokens: %+v %v", res, err)
	}
}

func TestSlideKeepsTheEnd(t *testing.T) {
	g := &generation{req: Request{Context: 8}, bos: true, seq: []int32{1, 10, 11, 12, 13, 14, 15, 16, 17}}
	g.slide()
	if !slices.Equal(g.seq, []int32{1, 15, 16, 17}) {
		t.Errorf("kept %v", g.seq)
	}
	g = &generation{req: Request{Context: 2}, seq: []int32{1, 10, 11}}
	g.slide()
	if !slices.Equal(g.seq, []int32{11}) {
		t.Errorf("kept %v", g.seq)
	}
}

func TestGenerateRefuses(t *testing.T) {
	tok := tinyTokenizer(t)
	for name, req := range map[string]Request{
		"context":  {Prompt: "x"},
		"negative": {Prompt: "x", Context: 9, MaxTokens: -1},
		"empty":    {IDs: []int32{}, Context: 9},
		"stop":     {Prompt: "x", Context: 9, Stop: []string{""}},
		"sampling": {Prompt: "x", Context: 9, Sampling: Sampling{TopP: 3}},
	} {
		if _, err := Generate(t.Context(), scripted(t, tok, 9), tok, req, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	_, err := Generate(t.Context(), scripted(t, tok, 4), tok, Request{Prompt: "x y z 1 2 3", Context: 4}, nil)
	var full *ContextError
	if !errors.As(err, &full) || full.Context != 4 || full.Prompt <= 4 {
		t.Errorf("a long prompt: %v", err)
	}
	boom := errors.New("closed")
	say := tok.Encode(nil, "the dog")
	if _, err := Generate(t.Context(), scripted(t, tok, 50, say...), tok, Request{Prompt: "x", Context: 50, MaxTokens: 9}, func(string) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("emit's error is lost: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Generate(ctx, scripted(t, tok, 50, say...), tok, Request{Prompt: "x", Context: 50, MaxTokens: 9}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// The same seed gives the same text, and padding rows are never drawn.
func TestGenerateSeeds(t *testing.T) {
	tok := tinyTokenizer(t)
	gen := func(seed uint64) Result {
		res, err := Generate(t.Context(), scripted(t, tok, 200), tok, Request{Prompt: "x", Context: 200, MaxTokens: 150, Sampling: Sampling{Temperature: 1, Seed: seed}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range res.IDs {
			if int(id) >= tok.VocabSize() {
				t.Fatalf("drew id %d of %d", id, tok.VocabSize())
			}
		}
		return res
	}
	if a, b := gen(1), gen(1); !slices.Equal(a.IDs, b.IDs) || a.Text != b.Text {
		t.Error("the same seed gives another text")
	}
	if a, b := gen(1), gen(2); slices.Equal(a.IDs, b.IDs) {
		t.Error("another seed gives the same text")
	}
}

// However the text is cut, a stop string ends it at the same place.
func TestStopperChunks(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		stops := []string{"aab", "ba"}[:1+r.IntN(2)]
		var b strings.Builder
		for range r.IntN(12) {
			b.WriteByte("abc"[r.IntN(3)])
		}
		text := b.String()
		want, found := text, false
		for end := 1; end <= len(text) && !found; end++ { // the stop string that is complete first
			for _, s := range stops {
				if strings.HasSuffix(text[:end], s) {
					want, found = text[:end-len(s)], true
					break
				}
			}
		}
		s := stopper{stops: stops}
		got, stopped := "", false
		for rest := text; rest != "" && !stopped; {
			var out string
			out, stopped = s.push(rest[:1])
			got += out
			rest = rest[1:]
		}
		if !stopped {
			got += s.held
		}
		if got != want || stopped != found {
			t.Fatalf("%q with %q: %q %v, want %q %v", text, stops, got, stopped, want, found)
		}
	}
}
