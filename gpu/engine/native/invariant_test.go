package native

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// TestDecoderIsInvariant holds logits to the bit, however tokens are split between
// calls, beside whom they are decoded and on how many threads.
func TestDecoderIsInvariant(t *testing.T) {
	a := arch(32, 2, 4, 2, 40, 67, true)
	a.Context = 330 // more than one block of attention's
	m := build(t, a, Options{})
	perturb(m, 1)
	r := rand.New(rand.NewPCG(1, 1))
	const N = 310
	seqs := make([][]int32, 5)
	for i := range seqs {
		seqs[i] = make([]int32, N)
		for j := range seqs[i] {
			seqs[i][j] = int32(r.IntN(a.Vocab))
		}
	}
	decoder := func(threads int) *Decoder {
		d, err := NewDecoder(a, m.State(), DecoderOptions{Threads: threads, MaxSeqs: len(seqs) + 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	same := func(what string, got, want []float32) {
		t.Helper()
		for i := range want {
			if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
				t.Fatalf("%s: logit %d is %g, alone it is %g", what, i, got[i], want[i])
			}
		}
	}
	prefill := func(d *Decoder, seq int, ids []int32) []float32 {
		t.Helper()
		l, err := d.Prefill(seq, ids)
		if err != nil {
			t.Fatal(err)
		}
		return append([]float32(nil), l...)
	}

	// Alone: a prefill of a third, then token by token.
	alone := decoder(1)
	want := make([][][]float32, len(seqs))
	for s, ids := range seqs {
		want[s] = make([][]float32, N)
		want[s][N/3-1] = prefill(alone, s, ids[:N/3])
		for p := N / 3; p < N; p++ {
			l, err := alone.Decode([]int{s}, ids[p:p+1])
			if err != nil {
				t.Fatal(err)
			}
			want[s][p] = append([]float32(nil), l...)
		}
	}
	for _, threads := range []int{1, 3} {
		d := decoder(threads)
		for s, ids := range seqs { // other splits
			n := N / 3
			for p := 0; p < n; {
				k := min(n-p, 1+r.IntN(90))
				l := prefill(d, s, ids[p:p+k])
				if p += k; p == n {
					same(fmt.Sprintf("%d threads, prefill of sequence %d", threads, s), l, want[s][n-1])
				}
			}
		}
		for p := N / 3; p < N; p++ {
			all, one := r.Perm(len(seqs)), make([]int32, len(seqs))
			for i, s := range all {
				one[i] = seqs[s][p]
			}
			l, err := d.Decode(all, one)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range all {
				same(fmt.Sprintf("%d threads, sequence %d at %d in a batch", threads, s, p), l[i*a.Vocab:(i+1)*a.Vocab], want[s][p])
			}
		}
		for s, ids := range seqs { // prefill where the others decoded
			d.Drop(s)
			same("prefill of all", prefill(d, s, ids), want[s][N-1])
		}
	}

	size := alone.KV().Tokens
	for s, ids := range seqs { // pages of the sequence that was decoded
		n := 0
		for ; n+size <= N-5; n += size {
			page, err := alone.KeepKV(s, n)
			if err != nil {
				t.Fatal(err)
			}
			if err := alone.UseKV(9, page); err != nil {
				t.Fatal(err)
			}
		}
		same("shared keys and values", prefill(alone, 9, ids[n:]), want[s][N-1])
		// The page at its end is written again, and is shared no more.
		alone.Trim(9, n-7)
		same("after a trim", prefill(alone, 9, ids[n-7:]), want[s][N-1])
		alone.Trim(9, n-7)
		other := slices.Clone(ids[n-7:])
		other[0] = (other[0] + 1) % int32(a.Vocab)
		prefill(alone, 9, other)
		alone.Trim(s, n)
		same("beside a copy that differs", prefill(alone, s, ids[n:]), want[s][N-1])
		alone.Drop(9)
	}
}

func TestPages(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	a.Context = 4 * pageLen
	m := build(t, a, Options{})
	if _, err := NewDecoder(a, m.State(), DecoderOptions{KVBytes: a.PageBytes() - 1}); err == nil {
		t.Error("less than a page is enough")
	}
	d, err := NewDecoder(a, m.State(), DecoderOptions{MaxSeqs: 3, KVBytes: 5 * a.PageBytes()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	state := func(free, held int) {
		t.Helper()
		if kv := d.KV(); kv.Pages != 5 || kv.Free != free || kv.Held != held || kv.Bytes != a.PageBytes() {
			t.Errorf("%+v, want %d free, %d held", kv, free, held)
		}
		pages := map[engine.KVPage]int{}
		for _, c := range d.caches {
			if len(c.pages) != (c.n+pageLen-1)/pageLen {
				t.Errorf("%d tokens in %d pages", c.n, len(c.pages))
			}
			for _, id := range c.pages {
				pages[id]++
			}
		}
		for id, p := range d.pages.all {
			if p.seqs != pages[engine.KVPage(id)] || (p.seqs == 0 && p.kept == 0) != slices.Contains(d.pages.free, engine.KVPage(id)) {
				t.Errorf("page %d: %d sequences have it, it counts %d, kept %d times", id, pages[engine.KVPage(id)], p.seqs, p.kept)
			}
		}
	}
	prefill := func(seq, n int) error {
		_, err := d.Prefill(seq, make([]int32, n))
		return err
	}
	state(5, 0)
	if err := prefill(0, 2*pageLen+1); err != nil {
		t.Fatal(err)
	}
	state(2, 3)
	if prefill(1, 3*pageLen) == nil {
		t.Error("more pages than there are")
	}
	state(2, 3)
	page, err := d.KeepKV(0, pageLen)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.UseKV(1, page), d.UseKV(2, page)); err != nil {
		t.Fatal(err)
	}
	state(2, 3)
	d.Drop(0)
	state(4, 1)
	d.Trim(1, pageLen-1) // its next token is written into a copy
	if err := prefill(1, 1); err != nil {
		t.Fatal(err)
	}
	state(3, 2)
	if again, err := d.KeepKV(2, 0); err != nil || again != page {
		t.Errorf("page %d, not %d: %v", again, page, err)
	}
	d.Drop(2)
	d.ReleaseKV(page)
	state(3, 1) // one is only kept
	d.ReleaseKV(page)
	state(4, 1)
	if err := prefill(0, 4*pageLen); err != nil {
		t.Fatal(err)
	}
	state(0, 5)
	if _, err := d.Decode([]int{1}, []int32{0}); err == nil {
		t.Error("a token without a page")
	}
	state(0, 5)
	if _, err := d.KeepKV(1, 1); err == nil {
		t.Error("half a page is kept")
	}
	if d.UseKV(1, page) == nil || d.UseKV(1, 99) == nil || d.UseKV(2, -1) == nil {
		t.Error("a page that is not kept is used")
	}
	d.Trim(1, 5)
	if kept, err := d.KeepKV(0, 0); err != nil || d.UseKV(1, kept) == nil {
		t.Errorf("a page after a part of one: %v", err)
	}
}
