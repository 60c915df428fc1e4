package token

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// slowSplit reads the expressions off their text: alternatives in order, each by
// trying every length it could have, over decoded characters.
func slowSplit(sp Split, s string) []string {
	type char struct {
		text string
		k    class
	}
	var cs []char
	for p := 0; p < len(s); {
		_, w := utf8.DecodeRuneInString(s[p:])
		k, _ := classAt(s, p)
		cs = append(cs, char{s[p : p+w], k})
		p += w
	}
	is := func(i int, f func(class) bool) bool { return i < len(cs) && f(cs[i].k) }
	many := func(i int, f func(class) bool) int {
		for is(i, f) {
			i++
		}
		return i
	}
	isL := func(k class) bool { return k == letter }
	isN := func(k class) bool { return k == number }
	isO := func(k class) bool { return k == other }
	isS := func(k class) bool { return k >= space }
	isBreak := func(k class) bool { return k == newline }
	contraction := func(i int) int {
		if cs[i].text != "'" {
			return i
		}
		for _, tail := range []string{"s", "t", "re", "ve", "m", "ll", "d"} {
			var got strings.Builder
			for j := i + 1; j < len(cs) && j <= i+len(tail); j++ {
				got.WriteString(cs[j].text)
			}
			g := got.String()
			if sp == SplitLlama3 {
				g = strings.ToLower(strings.ReplaceAll(g, "ſ", "s"))
			}
			if g == tail {
				return i + 1 + len(tail)
			}
		}
		return i
	}
	lookahead := func(i int) int { // \s+(?!\S)|\s+
		e := many(i, isS)
		for j := e; j > i; j-- {
			if j == len(cs) || isS(cs[j].k) {
				return j
			}
		}
		return e
	}
	piece := func(i int) int {
		if e := contraction(i); e > i {
			return e
		}
		if sp == SplitGPT2 {
			for _, f := range []func(class) bool{isL, isN, isO} {
				j := i
				if cs[i].text == " " {
					j++
				}
				if e := many(j, f); e > j {
					return e
				}
			}
			return lookahead(i)
		}
		if j := i + 1; !isL(cs[i].k) && !isN(cs[i].k) && !isBreak(cs[i].k) && many(j, isL) > j {
			return many(j, isL)
		}
		if e := many(i, isL); e > i {
			return e
		}
		if e := many(i, isN); e > i {
			return min(e, i+3)
		}
		j := i
		if cs[i].text == " " {
			j++
		}
		if e := many(j, isO); e > j {
			return many(e, isBreak)
		}
		for e := many(i, isS); e > i; e-- {
			if isBreak(cs[e-1].k) {
				return e
			}
		}
		return lookahead(i)
	}
	var out []string
	for i := 0; i < len(cs); {
		e := piece(i)
		var b strings.Builder
		for ; i < e; i++ {
			b.WriteString(cs[i].text)
		}
		out = append(out, b.String())
	}
	return out
}

func fastSplit(sp Split, s string) []string {
	var out []string
	for p := 0; p < len(s); {
		e := sp.next(s, p)
		out = append(out, s[p:e])
		p = e
	}
	return out
}

func checkSplit(t *testing.T, s string) {
	t.Helper()
	for _, sp := range []Split{SplitLlama3, SplitGPT2} {
		want := slowSplit(sp, s)
		if got := fastSplit(sp, s); !slices.Equal(got, want) {
			t.Fatalf("split %d of %q:\n got %q\nwant %q", sp, s, got, want)
		}
	}
}

func TestSplitTable(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"Hello, world's end", []string{"Hello", ",", " world", "'s", " end"}},
		{"a  b\n\n c", []string{"a", " ", " b", "\n\n", " c"}},
		{"1234567", []string{"123", "456", "7"}},
		{"\tif x:\n", []string{"\tif", " x", ":\n"}},
		{"end  ", []string{"end", "  "}},
		{" \n \n  x", []string{" \n \n", " ", " x"}},
		{"I'M 'ſo", []string{"I", "'M", " '", "ſo"}},
		{"你好，世界", []string{"你好", "，世界"}},
	} {
		if got := fastSplit(SplitLlama3, c.text); !slices.Equal(got, c.want) {
			t.Errorf("%q splits into %q, want %q", c.text, got, c.want)
		}
	}
}

func TestSplitLikeSlow(t *testing.T) {
	for _, s := range tricky {
		checkSplit(t, s)
	}
	r := rand.New(rand.NewPCG(21, 22))
	for range 3000 {
		checkSplit(t, randomText(r, 1+r.IntN(60)))
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range tricky {
		f.Add(s)
	}
	f.Add("\xe4\xb8 \xff'\xc5")
	f.Fuzz(func(t *testing.T, s string) { checkSplit(t, s) })
}

func FuzzEncodeDecode(f *testing.F) {
	tok := trainOn(f, 600, 1, 1, tricky...)
	for _, s := range tricky {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, s string, at int) {
		ids := tok.Encode(nil, s)
		if got := tok.Decode(ids); got != s {
			t.Fatalf("%q comes back as %q", s, got)
		}
		at = max(0, min(at, len(s)))
		enc := tok.NewEncoder()
		if got := enc.Flush(enc.Append(enc.Append(nil, []byte(s[:at])), []byte(s[at:]))); !slices.Equal(got, ids) {
			t.Fatalf("%q in two chunks at %d: %v, whole %v", s, at, got, ids)
		}
		if got := tok.DecodeSpecial(tok.EncodeSpecial(nil, s)); got != s {
			t.Fatalf("%q with special tokens comes back as %q", s, got)
		}
	})
}

func FuzzParse(f *testing.F) {
	data, err := trainOn(f, 280, 1, 1, "hello hello you").MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":["a a"]},"decoder":{"type":"ByteLevel"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := Parse(data)
		if err != nil {
			return
		}
		if got := tok.Decode(tok.Encode(nil, "any text 123\n")); got != "any text 123\n" {
			t.Fatalf("a parsed tokenizer gives %q", got)
		}
		again, err := tok.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Fatalf("what Parse took it refuses when written again: %v", err)
		}
	})
}
