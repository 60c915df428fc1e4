package glm

import (
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// PrefillRows is the most tokens of a prompt that a decoder on the CPU computes at once.
const PrefillRows = 64

// PageTokens is how many tokens' keys and values a decoder on the CPU keeps in one page:
// whole panels of a product, at every level.
const PageTokens = kernel.PanelWidth

// PageBytes is the memory of a page.
func (a Arch) PageBytes() int64 {
	D := a.HeadDim()
	return int64(4 * a.Layers * a.KVHeads * (PageTokens*D + kernel.PackedLen(D, PageTokens)))
}

// DecodingBytes is the memory that the native decoder allocates to generate seqs
// sequences at once: parameters, packed, keys and values of full contexts, and each
// thread's scratch.
func (a Arch) DecodingBytes(w Weights, seqs, threads int) int64 {
	C, D, F, T, V := a.Dim, a.HeadDim(), a.FFN, a.Context, a.Vocab
	cache := int64((T+PageTokens-1)/PageTokens) * a.PageBytes()
	scratch := PrefillRows * (3*C + 2*a.QueryDim() + 2*a.KVDim() + 3*F + T + V + kernel.PackedLen(D, 1))
	n := T*D + max(1, seqs)*V + max(1, threads)*scratch
	return 4*int64(n) + int64(max(1, seqs))*cache + a.weightBytes(w) + int64(max(1, threads))*a.productBytes(w)
}

// TokenWork is how many parameters and cached values a generated token reads, in the
// mean over a full context. That is what it takes at batch 1, where each is used once.
func (a Arch) TokenWork() float64 {
	return float64(a.MatrixParams()) + float64(a.Vocab)*float64(a.Dim) + float64(a.Layers)*float64(a.Context)*float64(a.QueryDim())
}

// TokenTime is how long a token of so much work takes on a machine.
type TokenTime struct {
	Work    float64 `json:"work" msgpack:"work"`
	Seconds float64 `json:"seconds" msgpack:"seconds"`
}

// TokenSeconds is how long a generated token takes on a machine where shapes of
// TokenProbes took those times, which rise: between two of them by logarithms, since
// what a parameter costs is a matter of the cache that holds them all.
func (a Arch) TokenSeconds(times []TokenTime) float64 {
	w := a.TokenWork()
	i := slices.IndexFunc(times, func(t TokenTime) bool { return t.Work >= w })
	switch {
	case i == 0:
		return times[0].Seconds * w / times[0].Work
	case i < 0:
		last := times[len(times)-1]
		return last.Seconds * w / last.Work
	}
	p, q := times[i-1], times[i]
	x := math.Log(w/p.Work) / math.Log(q.Work/p.Work)
	return p.Seconds * math.Pow(q.Seconds/p.Seconds, x)
}

// TokenProbes are shapes by which a machine is timed, smallest first, up to one with
// at least so many parameters in matrices where there is one.
func TokenProbes(params int64) []Arch {
	var out []Arch
	for _, p := range [][5]int{ // C, L, H, V, T
		{64, 2, 2, 320, 64},
		{128, 4, 4, 512, 128},
		{256, 6, 4, 2048, 256},
		{512, 8, 8, 4096, 256},
		{768, 12, 12, 8192, 256},
	} {
		a := Arch{Vocab: p[3], Dim: p[0], Layers: p[1], Heads: p[2], KVHeads: p[2], FFN: 3 * p[0], Context: p[4], Tied: true}.WithDefaults()
		out = append(out, a)
		if a.MatrixParams() >= params {
			break
		}
	}
	return out
}
