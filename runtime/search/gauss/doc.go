// Package gauss is regression by a Gaussian process with a Matérn-5/2 kernel over
// numbers in [0, 1] and names, and the expected improvement that a search climbs.
//
//	m, err := gauss.Fit(gauss.Data{Kinds: kinds, X: points, Y: scores}, gauss.Options{})
//	mean, variance := m.Predict(point)
//	a := gauss.LogEI(mean, math.Sqrt(variance), best)
//
// The kernel is
//
//	k(x, x′) = s·(1 + √5·r + 5/3·r²)·exp(−√5·r),   r² = Σ_j w_j·d_j²
//
// where d_j is the difference of two numbers, after a warp of their range by
// Kumaraswamy's distribution (Snoek et al., ICML 2014), or 1 for two names that differ
// (Hamming). Scale s, inverse squared lengthscales w, noise and warp are those of the
// largest posterior density, found by L-BFGS with the gradient in closed form
// (Rasmussen and Williams 2006, chapter 5).
//
// Vocabulary: n observations, d dimensions, hyper-parameters (in logarithms).
package gauss
