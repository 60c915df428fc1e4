package token

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// A corpus small enough to check by hand.
func TestTrainGolden(t *testing.T) {
	tok := trainOn(t, MinVocab+8, 1, 1, "ab ab abc", "abc\nzz")
	var got []string
	for i := range tok.Merges() {
		l, r := tok.Merge(i)
		got = append(got, l+"+"+r)
	}
	// Words: "ab", " ab", " abc", "abc" and "zz", once each. a+b stands 4 times
	// and goes first, then " "+ab with 2. The rest stand once: the smaller ids
	// go first, and later symbols have larger ones.
	want := []string{"a+b", " +ab", "z+z", "ab+c", " ab+c"}
	if !slices.Equal(got, want) {
		t.Fatalf("merges %q, want %q", got, want)
	}
	if tok.VocabSize() != MinVocab+len(want) {
		t.Errorf("vocabulary %d, want %d: the data has no more pairs", tok.VocabSize(), MinVocab+len(want))
	}
	ids := tok.Encode(nil, "abc zzab")
	want2 := []string{"abc", " ", "zz", "ab"}
	var syms []string
	for _, id := range ids {
		syms = append(syms, tok.Symbol(id))
	}
	if !slices.Equal(syms, want2) {
		t.Errorf("symbols %q, want %q", syms, want2)
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// Files that were written once must stay readable, and are written the same.
func TestGoldenFile(t *testing.T) {
	const path = "testdata/tokenizer.golden.json"
	data, err := trainOn(t, 300, 2, 1, "the cat and the hat and the bat, 你好 你好 and 1234 1234").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, want) {
		t.Errorf("%s differs; go test -update writes it anew", path)
	}
	tok, err := Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode(nil, "the bat 你好"); tok.Decode(got) != "the bat 你好" || len(got) > 6 {
		t.Errorf("ids %v", got)
	}
}

// A piece that never ends is buffered in linear time.
func TestStreamLongPiece(t *testing.T) {
	tok := trainOn(t, 300, 1, 1, "a b")
	text := strings.Repeat(" ", 1<<20) + "x"
	enc := tok.NewEncoder()
	var got []int32
	for i := 0; i < len(text); i += 64 {
		got = enc.Append(got, []byte(text[i:min(i+64, len(text))]))
	}
	if got = enc.Flush(got); !slices.Equal(got, tok.Encode(nil, text)) {
		t.Error("the stream encodes otherwise")
	}
}

func TestSpecials(t *testing.T) {
	tok := trainOn(t, 300, 1, 1, "some text to learn from")
	for id, s := range Specials() {
		if got, ok := tok.SpecialID(s); !ok || int(got) != id || !tok.IsSpecial(got) {
			t.Errorf("%s has id %d", s, got)
		}
	}
	text := "a<|user|>b"
	if ids := tok.Encode(nil, text); slices.Contains(ids, UserID) || tok.Decode(ids) != text {
		t.Errorf("Encode parsed a special token: %v", ids)
	}
	ids := tok.EncodeSpecial(nil, text)
	if len(ids) != 3 || ids[1] != UserID || tok.Decode(ids) != "ab" || tok.DecodeSpecial(ids) != text {
		t.Errorf("EncodeSpecial gives %v", ids)
	}
	if ids := tok.EncodePrompt(nil, text); ids[0] != BOSID || len(ids) != 4 {
		t.Errorf("EncodePrompt gives %v", ids)
	}
}

func TestTrainConfigValidate(t *testing.T) {
	for _, c := range []TrainConfig{{VocabSize: 100, Threads: 1}, {VocabSize: 400, Threads: 0}, {VocabSize: 400, Threads: 1, MinFrequency: -1}, {VocabSize: MaxVocab + 1, Threads: 1}} {
		if _, err := NewTrainer(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

func TestTrainCancelled(t *testing.T) {
	tr, err := NewTrainer(DefaultTrainConfig())
	if err != nil {
		t.Fatal(err)
	}
	tr.Add([]byte("hello hello hello"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tr.Train(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// Threads, chunking and the way in don't change the tokenizer.
func TestTrainIsDeterministic(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	text := proseText(r, 300000, "etaoinshrdlu", " ") + randomText(r, 200000)
	want, err := trainOn(t, 1500, 2, 1, text).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	old := placesPerThread
	placesPerThread = 5 // so that this small corpus is shared out
	defer func() { placesPerThread = old }()
	for threads := 1; threads <= 3; threads++ {
		tr, err := NewTrainer(TrainConfig{VocabSize: 1500, MinFrequency: 2, Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Feed(t.Context(), iotest.HalfReader(strings.NewReader(text))); err != nil {
			t.Fatal(err)
		}
		tok, err := tr.Train(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tok.MarshalJSON(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d threads from a reader: another tokenizer (%v)", threads, err)
		}
	}
}

// Feed must cut its buffer where a piece ends.
func TestFeedAcrossBuffers(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 6))
	text := strings.Repeat("0123456789 ", 50000) + proseText(r, flushBytes+100000, "abcdefg", " ") + strings.Repeat("你好。", 300000)
	tr, err := NewTrainer(TrainConfig{VocabSize: 400, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Feed(t.Context(), strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	whole := newWordTable(maphash.MakeSeed())
	whole.count(text)
	want := map[string]int64{}
	for i := range whole.words {
		want[whole.of(&whole.words[i])] = whole.words[i].count
	}
	for _, part := range share(tr.counters) {
		for i := range part.words {
			w := &part.words[i]
			if n, ok := want[part.of(w)]; !ok || n != w.count {
				t.Fatalf("%q is counted %d times, not %d", part.of(w), w.count, n)
			}
			delete(want, part.of(w))
		}
	}
	if len(want) != 0 {
		t.Errorf("%d words are missing", len(want))
	}
}

func TestTruncate(t *testing.T) {
	text := proseText(rand.New(rand.NewPCG(7, 8)), 100000, "etaoinshrdlucmfw", " ")
	large := trainOn(t, 1200, 2, 1, text)
	for _, v := range []int{1200, 1199, 704, 320, MinVocab} {
		small, err := large.Truncate(v)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := small.MarshalJSON()
		want, _ := trainOn(t, v, 2, 1, text).MarshalJSON()
		if !bytes.Equal(got, want) {
			t.Errorf("truncated to %d is not the one trained to %d", v, v)
		}
	}
	for _, v := range []int{1201, MinVocab - 1, 0} {
		if _, err := large.Truncate(v); err == nil {
			t.Errorf("truncated to %d", v)
		}
	}
}

func TestRoundTripAnyBytes(t *testing.T) {
	tok := trainOn(t, 600, 1, 1, tricky...)
	r := rand.New(rand.NewPCG(9, 10))
	for range 500 {
		b := make([]byte, r.IntN(300))
		for i := range b {
			b[i] = byte(r.IntN(256))
			if r.IntN(2) == 0 {
				b[i] = "ab \n'0\xe4\xbd\xa0"[r.IntN(9)]
			}
		}
		if got := tok.Decode(tok.Encode(nil, string(b))); got != string(b) {
			t.Fatalf("%q comes back as %q", b, got)
		}
	}
}

func TestStreamsLikeWhole(t *testing.T) {
	tok := trainOn(t, 900, 1, 1, tricky...)
	r := rand.New(rand.NewPCG(11, 12))
	for i := range 300 {
		text := randomText(r, r.IntN(600))
		if i%3 == 0 { // bytes that are not UTF-8
			b := []byte(text)
			for range len(b) / 10 {
				b[r.IntN(len(b))] = byte(r.IntN(256))
			}
			text = string(b)
		}
		want := tok.Encode(nil, text)
		enc := tok.NewEncoder()
		var got []int32
		for rest := text; rest != ""; {
			n := min(1+r.IntN(7), len(rest))
			if r.IntN(10) == 0 {
				n = r.IntN(len(rest) + 1)
			}
			got = enc.Append(got, []byte(rest[:n]))
			rest = rest[n:]
		}
		if got = enc.Flush(got); !slices.Equal(got, want) {
			t.Fatalf("%q in chunks:\n got %v\nwant %v", text, got, want)
		}
		got = got[:0]
		if err := tok.EncodeReader(iotest.OneByteReader(strings.NewReader(text)), func(ids []int32) error { got = append(got, ids...); return nil }); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q from a reader (%v):\n got %v\nwant %v", text, err, got, want)
		}
		for q := 0; q < len(text); q += 1 + r.IntN(20) { // every safe cut is safe
			if c := safeCut(text, 0, q); c > 0 {
				if got := tok.Encode(tok.Encode(nil, text[:c]), text[c:]); !slices.Equal(got, want) {
					t.Fatalf("%q cut at %d encodes otherwise", text, c)
				}
			}
		}
		var text2 strings.Builder
		dec := tok.NewDecoder(false)
		for _, id := range want {
			part := dec.Push(id)
			if !utf8.ValidString(part) {
				t.Fatalf("decoder gives %q", part)
			}
			text2.WriteString(part)
		}
		text2.WriteString(dec.Flush())
		if text2.String() != ValidUTF8(text) {
			t.Fatalf("%q decodes in a stream to %q", text, text2.String())
		}
	}
}

func TestEncodeAll(t *testing.T) {
	tok := trainOn(t, 900, 1, 1, tricky...)
	r := rand.New(rand.NewPCG(13, 14))
	for _, text := range []string{"", "x", proseText(r, 500000, "abcdefgh", " "), randomText(r, 400000), strings.Repeat("9", 300000), strings.Repeat("你好，", 50000)} {
		want := tok.Encode(nil, text)
		for threads := 1; threads <= 5; threads++ {
			if got := tok.EncodeAll(text, threads); !slices.Equal(got, want) {
				t.Fatalf("%d threads encode otherwise", threads)
			}
		}
	}
}

// The heap for long pieces and the scan for short ones agree.
func TestHeapLikeScan(t *testing.T) {
	tok := trainOn(t, 700, 1, 1, strings.Repeat("abab aab baa abba ", 3), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", strings.Repeat("ab", 50))
	tok.ignoreMerges = false
	r := rand.New(rand.NewPCG(17, 14))
	sc := newScratch()
	for range 500 {
		b := make([]byte, 2+r.IntN(scanLimit-2))
		for i := range b {
			b[i] = "aaab"[r.IntN(4)]
		}
		scan, heap := tok.mergeAny(nil, string(b), sc), tok.mergeHeap(nil, string(b), sc)
		if !slices.Equal(scan, heap) {
			t.Fatalf("%q: scan %v, heap %v", b, scan, heap)
		}
	}
}

// Stepping back gives what merging one by one gives, for any training and text.
func TestBacktracksLikeMerges(t *testing.T) {
	sc := newScratch()
	rapid.Check(t, func(rt *rapid.T) {
		alphabet := rapid.SampledFrom([]string{"ab", "aab", "abcd", "的一是不了", "你好世界的是", "=-"}).Draw(rt, "alphabet")
		text := rapid.StringOfN(rapid.SampledFrom([]rune(alphabet)), 2, 300, -1)
		tok := trainOn(t, MinVocab+rapid.IntRange(0, 80).Draw(rt, "merges"), 1, 1, text.Draw(rt, "corpus"), text.Draw(rt, "more"))
		if tok.back == nil {
			rt.Fatal("a trained tokenizer is taken for another")
		}
		clear(sc.seams) // they belong to one tokenizer
		for range 20 {
			piece := text.Draw(rt, "piece")
			if got, want := tok.back.encode(nil, piece, sc), tok.mergeHeap(nil, piece, sc); !slices.Equal(got, want) {
				rt.Fatalf("%q: %v, merged %v", piece, got, want)
			}
		}
	})
}

// Merges that no training makes are done one by one.
func TestUntrainedMerges(t *testing.T) {
	tok := trainOn(t, MinVocab+3, 1, 1, "ab abc abcd")
	for _, merges := range [][][2]int32{
		{tok.merges[1], tok.merges[0]},                // before its half
		{tok.merges[0], tok.merges[1], tok.merges[0]}, // twice
	} {
		odd := &Tokenizer{split: tok.split, symbols: tok.symbols, inModel: tok.inModel, merges: merges, bos: -1}
		if err := odd.finish(); err != nil {
			t.Fatal(err)
		}
		if odd.back != nil {
			t.Errorf("merges %v are taken for those of a training", merges)
		}
		if got := odd.Decode(odd.Encode(nil, "abcd ab")); got != "abcd ab" {
			t.Errorf("comes back as %q", got)
		}
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	tok := trainOn(t, 700, 1, 1, tricky...)
	data, err := tok.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	data2, err := again.MarshalJSON()
	if err != nil || !bytes.Equal(data, data2) {
		t.Fatalf("a parsed tokenizer is written otherwise (%v)", err)
	}
	if again.BOS() != BOSID || !reflect.DeepEqual(again.symbols, tok.symbols) {
		t.Error("a parsed tokenizer is another one")
	}
}

// The older forms: merges as "a b", GPT-2's own pre-tokenizer, ids after the vocabulary.
func TestParseGPT2(t *testing.T) {
	var vocab strings.Builder
	for i, b := range byteOrder {
		fmt.Fprintf(&vocab, "%s:%d,", quote(string(byteToRune[b])), i)
	}
	file := `{"version":"1.0","added_tokens":[{"id":260,"content":"<|endoftext|>","normalized":true,"special":true}],"normalizer":null,
	"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true},"post_processor":{"type":"ByteLevel"},
	"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{` + vocab.String() + `"he":256,"ll":257,"hell":258,"Ġhell":259},"merges":["h e","l l","he ll","Ġ hell"]}}`
	tok, err := Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if tok.BOS() != -1 || tok.VocabSize() != 261 || tok.Split() != SplitGPT2 {
		t.Errorf("BOS %d, vocabulary %d", tok.BOS(), tok.VocabSize())
	}
	if ids := tok.EncodeSpecial(nil, "hell hell<|endoftext|>"); !slices.Equal(ids, []int32{258, 259, 260}) {
		t.Errorf("ids are %v", ids)
	}
	if data, err := tok.MarshalJSON(); err != nil {
		t.Error(err)
	} else if _, err := Parse(data); err != nil {
		t.Error(err)
	}
}

func TestParseRefuses(t *testing.T) {
	data, err := trainOn(t, 300, 1, 1, "hello hello").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for _, c := range []struct{ from, to, want string }{
		{`"version": "1.0"`, `"version": "2.0"`, "version"},
		{`"type": "BPE"`, `"type": "Unigram"`, "Unigram"},
		{`"normalizer": null`, `"normalizer": {"type": "NFC"}`, "NFC"},
		{`"dropout": null`, `"dropout": 0.1`, "dropout"},
		{`"byte_fallback": false`, `"byte_fallback": true`, "byte_fallback"},
		{`"end_of_word_suffix": null`, `"end_of_word_suffix": "</w>"`, "end_of_word_suffix"},
		{`"lstrip": false`, `"lstrip": true`, "lstrip"},
		{`\\p{N}{1,3}`, `\\p{N}`, "split expression"},
		{`"behavior": "Isolated"`, `"behavior": "Removed"`, "behavior"},
		{`"!": 7`, `"!": 8`, "id 8"},
		{`"!": 7`, `"!": -1`, "-1"},
		{`"!": 7`, `"!": 999999999`, "999999999"},
		{`"!": 7`, `"!!": 7`, "0x21"},
		{`"!": 7`, `"€": 7`, "byte alphabet"},
		{`"id": 3`, `"id": 4`, "id 4"},
		{`"content": "<|pad|>"`, `"content": ""`, "empty"},
		{`"ids": [`, `"ids": [9999,`, "no single id"},
	} {
		bad := strings.Replace(good, c.from, c.to, 1)
		if bad == good {
			t.Errorf("%s is not in the file", c.from)
			continue
		}
		if _, err := Parse([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v", c.to, err)
		}
	}
	for _, bad := range []string{"", "{}", "[]", `{"model":{"type":"BPE"}}`, good[:len(good)/2]} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%.40q is accepted", bad)
		}
	}
}

// slowMerges trains as the definition reads: count all pairs anew for each merge.
func slowMerges(text string, vocab, minFrequency int) [][2]uint32 {
	words := map[string]int64{}
	for p := 0; p < len(text); {
		e := nextLlama3(text, p)
		words[text[p:e]]++
		p = e
	}
	byteID := map[byte]uint32{}
	for i, b := range byteOrder {
		byteID[b] = uint32(numSpecials) + uint32(i)
	}
	syms := map[string][]uint32{}
	for w := range words {
		for i := range len(w) {
			syms[w] = append(syms[w], byteID[w[i]])
		}
	}
	var merges [][2]uint32
	for id := uint32(MinVocab); id < uint32(vocab); id++ {
		counts := map[[2]uint32]int64{}
		for w, s := range syms {
			for i := range len(s) - 1 {
				counts[[2]uint32{s[i], s[i+1]}] += words[w]
			}
		}
		var best [2]uint32
		for p, n := range counts {
			if n > counts[best] || n == counts[best] && (p[0] < best[0] || p[0] == best[0] && p[1] < best[1]) {
				best = p
			}
		}
		if counts[best] < int64(max(minFrequency, 1)) {
			break
		}
		merges = append(merges, best)
		for w, s := range syms {
			var out []uint32
			for i := 0; i < len(s); i++ {
				if i+1 < len(s) && s[i] == best[0] && s[i+1] == best[1] {
					out = append(out, id)
					i++
					continue
				}
				out = append(out, s[i])
			}
			syms[w] = out
		}
	}
	return merges
}

// Both widths of symbols, any number of threads and any text give the merges of
// the definition.
func TestTrainsLikeSlow(t *testing.T) {
	old := placesPerThread
	placesPerThread = 1
	defer func() { placesPerThread = old }()
	rapid.Check(t, func(rt *rapid.T) {
		alphabet := rapid.SampledFrom([]string{"ab", "aab ", "abc d", "的一是不， ", "a1 \n'"}).Draw(rt, "alphabet")
		text := rapid.StringOfN(rapid.SampledFrom([]rune(alphabet)), 0, 400, -1).Draw(rt, "text")
		text = strings.Repeat(text, rapid.IntRange(1, 3).Draw(rt, "repeat"))
		threads, minFrequency := rapid.IntRange(1, 3).Draw(rt, "threads"), rapid.IntRange(0, 3).Draw(rt, "least")
		vocab := MinVocab + rapid.IntRange(0, 60).Draw(rt, "merges")
		want := slowMerges(text, vocab, minFrequency)
		for _, wide := range []bool{false, true} {
			tr, err := NewTrainer(TrainConfig{VocabSize: vocab, MinFrequency: minFrequency, Threads: threads})
			if err != nil {
				rt.Fatal(err)
			}
			tr.Add([]byte(text))
			tr.flush()
			cfg := tr.cfg
			if wide {
				cfg.VocabSize = MaxVocab
			}
			var byteID [256]uint32
			for i, b := range byteOrder {
				byteID[b] = uint32(int(numSpecials) + i)
			}
			l, err := learn(share(tr.counters), &byteID, cfg)
			if err != nil {
				rt.Fatal(err)
			}
			var got [][2]uint32
			for len(got) < vocab-MinVocab {
				left, right, ok := l.next()
				if !ok {
					break
				}
				got = append(got, [2]uint32{left, right})
			}
			if !slices.Equal(got, want) {
				rt.Fatalf("merges %v, want %v", got, want)
			}
		}
	})
}
