package main

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// of makes a contestant that took these times in its rounds.
func of(name string, times ...float64) *contestant {
	c := &contestant{name: name, q: question{Texts: 2, Tokens: 10}}
	for _, t := range times {
		c.got = append(c.got, sample{First: t / 10, FirstCPU: t / 20, Decode: t, DecodeCPU: t / 2})
	}
	return c
}

func TestAgainst(t *testing.T) {
	ours, fast, slow := of("f32", 1, 2, 4), of("fast", 2, 2, 2), of("slow", 8, 8, 8)
	r := against("decode", false, 1, ours, fast, slow)
	// The best of the others counts, and the rounds' ratios, not that of the medians.
	if r.Ratio != 1 || r.CPURatio != 1 || !r.Holds || r.Ours.Value != 10 || r.Others["slow"].Value != 2.5 || r.Ours.CPU != 20 {
		t.Errorf("rates: %+v", r)
	}
	if r := against("decode", false, 1.1, ours, fast); r.Holds {
		t.Errorf("%+v holds", r)
	}
	r = against("first", true, 0.9, ours, fast, slow)
	if r.Ratio != 1 || r.Holds || r.Ours.Value != 200 || r.Ours.CPU != 100 || r.Unit != "ms" {
		t.Errorf("times: %+v", r)
	}
	var said strings.Builder
	r.print(&said)
	if want := "first\t200 (100) ms; fast 200 (100); slow 800 (400): ratio 1 (1), wanted ≤ 0.9: SHORT\n"; said.String() != want {
		t.Errorf("%q, want %q", said.String(), want)
	}
}

func TestCompete(t *testing.T) {
	var turns []string
	ask := func(name string) *contestant {
		return &contestant{name: name, q: question{Tokens: 50}, run: func(q question) (sample, error) {
			turns = append(turns, name)
			if (q.Seed == 1) != (q.Tokens == 4) {
				t.Errorf("round %d of %d tokens", q.Seed, q.Tokens)
			}
			return sample{Decode: float64(q.Seed)}, nil
		}}
	}
	a, b := ask("a"), ask("b")
	if err := compete(t.Context(), 2, []*contestant{a, b}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(turns, ""); got != "ababab" || len(a.got) != 2 || a.got[0].Decode != 2 {
		t.Errorf("turns %s, %v", got, a.got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := compete(ctx, 1, []*contestant{a}); !errors.Is(err, context.Canceled) {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

// A peer that isn't there is an error that says what to install.
func TestPeersAreNeeded(t *testing.T) {
	t.Setenv("AUTOGLM_PYTHON", "")
	s := &session{o: options{rounds: 1, tokens: 8}}
	if _, err := s.measure(t.Context(), "decode"); err == nil || !strings.Contains(err.Error(), ".ci/peers") {
		t.Errorf("%v", err)
	}
}

func TestModel(t *testing.T) {
	b, err := model()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Validate(); err != nil || b.Arch.Params() != 12_194_688 || b.Tokenizer.VocabSize() != b.Arch.Vocab {
		t.Errorf("%d parameters, %d pieces: %v", b.Arch.Params(), b.Tokenizer.VocabSize(), err)
	}
}
