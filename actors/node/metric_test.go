package node

import (
	"math"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/data"
)

func TestMetrics(t *testing.T) {
	for _, tc := range []struct {
		got, want      string
		exact, f1, lcs float64
	}{
		{"The Beatles.", "the beatles", 1, 1, 1},
		{"a b c d", "a c d e", 0, 0.75, 0.75},
		{"d c b a", "a b c d", 0, 1, 0.25},
		{"", "x", 0, 0, 0},
		{"", "", 1, 1, 1},
		{"北京市", "北京", 0, 0.8, 0.8},
		{"x", "y", 0, 0, 0},
	} {
		if v := exact(tc.got, tc.want); v != tc.exact {
			t.Errorf("exact(%q, %q) = %g", tc.got, tc.want, v)
		}
		if v := tokenF1(tc.got, tc.want); math.Abs(v-tc.f1) > 1e-9 {
			t.Errorf("tokenF1(%q, %q) = %g, want %g", tc.got, tc.want, v, tc.f1)
		}
		if v := rougeL(tc.got, tc.want); math.Abs(v-tc.lcs) > 1e-9 {
			t.Errorf("rougeL(%q, %q) = %g, want %g", tc.got, tc.want, v, tc.lcs)
		}
	}
}

func TestLastAnswer(t *testing.T) {
	ex := data.Example{Segments: []data.Segment{
		{Role: data.User, Text: "hi"},
		{Role: data.Assistant, Text: "hello", Scored: true},
		{Role: data.User, Text: "bye"},
		{Role: data.Assistant, Text: "see you", Scored: true},
	}}
	p, want, ok := lastAnswer(ex)
	if !ok || want != "see you" || p != "<|bos|><|user|>hi<|assistant|>hello<|endoftext|><|user|>bye<|assistant|>" {
		t.Errorf("%q %q %v", p, want, ok)
	}
	if _, _, ok := lastAnswer(data.Example{Segments: []data.Segment{{Text: "plain", Scored: true}}}); ok {
		t.Error("a plain text has no answer")
	}
}
