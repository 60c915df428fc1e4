package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
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
		d, err := NewDecoder(a, m.State(), DecoderOptions{Threads: threads, MaxSeqs: len(seqs)})
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

	d := decoder(1)
	block, data := d.KVBlock(), make([]float32, d.KVFloats())
	for s, ids := range seqs { // blocks of the decoder that decoded
		n := 0
		for ; n+block <= N-5; n += block {
			if err := alone.SaveKV(s, n, data); err != nil {
				t.Fatal(err)
			}
			if err := d.LoadKV(s, data); err != nil {
				t.Fatal(err)
			}
		}
		same("copied keys and values", prefill(d, s, ids[n:]), want[s][N-1])
		d.Trim(s, N-7)
		same("after a trim", prefill(d, s, ids[N-7:]), want[s][N-1])
		if d.SaveKV(s, N/block*block, data) == nil || d.SaveKV(s, 1, data) == nil || d.SaveKV(99, 0, data) == nil || d.SaveKV(s, 0, data[1:]) == nil {
			t.Error("a block that is not there is saved")
		}
		if N%block != 0 && d.LoadKV(s, data) == nil {
			t.Error("a block is loaded after half a block")
		}
	}
	if d.LoadKV(99, data) == nil || d.LoadKV(0, data[1:]) == nil {
		t.Error("a block is loaded that does not fit")
	}
}
