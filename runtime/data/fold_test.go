package data

import (
	"bytes"
	"testing"
	"unicode"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// slowFolded folds as the definition reads.
func slowFolded(b []byte) []byte {
	var out []byte
	space := true
	for _, r := range string(norm.NFKC.Bytes(b)) {
		if unicode.IsSpace(r) || r <= ' ' || r == 0x7f {
			if !space {
				out = append(out, ' ')
			}
			space = true
			continue
		}
		out = append(out, string(unicode.ToLower(r))...)
		space = false
	}
	if space && len(out) > 0 {
		out = out[:len(out)-1]
	}
	return out
}

// Eight bytes at a time fold as one by one do.
func TestFoldsLikeSlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		runes := rapid.SampledFrom([]rune("azAZ@[`{09 _~\x7f\t\n  \x1féÀ你，　ﬁ①\u00a0"))
		s := []byte(rapid.StringOfN(runes, 0, 60, -1).Draw(t, "text"))
		if got, want := appendFolded([]byte("x"), s), slowFolded(s); !bytes.Equal(got[1:], want) {
			t.Fatalf("%q folds to %q, want %q", s, got[1:], want)
		}
	})
}

func TestNextDigit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte("/09:a \x80\xb0\xb5\xff\x00\x7f")), 0, 40).Draw(t, "bytes")
		for i := range len(b) + 1 {
			want := i
			for want < len(b) && (b[want] < '0' || b[want] > '9') {
				want++
			}
			if got := nextDigit(b, i); got != want {
				t.Fatalf("%q from %d: %d, want %d", b, i, got, want)
			}
		}
	})
}
