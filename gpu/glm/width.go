package glm

import "math"

// Width is the maximal update parametrisation of a shape, µP (Yang et al. 2022, "Tensor
// Programs V", table 8 for Adam): initial parameters and rates depend on the width such
// that what a step changes does not, so that the rate that is best for a model of the
// base width is best for wider and narrower ones. At the base width nothing is changed;
// base 0 is the standard parametrisation at every width.
//
// With m = Dim/base, matrices learn at 1/m of the rate and embeddings at all of it,
// whose initial spread is that of the base width. Logits are to be 1/m of what they
// would be: an untied head begins 1/√m as large again as its columns make it and learns
// at 1/m; where the head is the embedding, the final norm's gain begins at 1/m and
// learns at 1/m in its place, so that the model computes the same function of its
// parameters as any other. Heads are to keep their size over widths. Muon's own rate
// needs no scale: its updates are orthogonal.
type Width struct {
	Arch Arch
	Base int
}

// Spread is the factor of a parameter's initial standard deviation, for a norm of its
// initial gain.
func (w Width) Spread(p Param) float64 {
	switch {
	case w.Base == 0:
		return 1
	case p.Role == Embedding:
		return math.Sqrt(w.m())
	case p.Role == Head:
		return 1 / math.Sqrt(w.m())
	case w.final(p):
		return 1 / w.m()
	}
	return 1
}

// Rate is the factor of a parameter's rate under AdamW.
func (w Width) Rate(p Param) float64 {
	switch {
	case w.Base == 0 || p.Role == Embedding:
		return 1
	case p.Role == Norm && !w.final(p):
		return 1
	}
	return 1 / w.m()
}

func (w Width) m() float64 { return float64(w.Arch.Dim) / float64(w.Base) }

// final tells whether p is the norm whose gain stands in for the scale of a tied head.
func (w Width) final(p Param) bool { return w.Arch.Tied && p.Name == "model.norm.weight" }
