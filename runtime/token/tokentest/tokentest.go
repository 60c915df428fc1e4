// Package tokentest makes small tokenizers for tests.
package tokentest

import (
	"testing"

	"github.com/open-autoglm/autoglm/runtime/token"
)

// Tiny has at most vocab ids, learnt from a few words.
func Tiny(t testing.TB, vocab int) *token.Tokenizer {
	t.Helper()
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: vocab, MinFrequency: 1, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	tr.Add([]byte("The quick brown fox jumps over the lazy dog, and the dog sleeps on the brown rock near the fox. Then the others wake."))
	tok, err := tr.Train(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tok
}
