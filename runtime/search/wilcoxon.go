package search

import (
	"cmp"
	"math"
	"slices"
)

// exactPairs is up to how many pairs the signed-rank distribution is counted out.
const exactPairs = 50

// SignedRank is the one-sided p-value of Wilcoxon's signed-rank test that paired
// differences lie above zero: how likely ranks that speak so much for it are by
// chance. Zeros are ranked and count half for either side (zsplit). Without ties and
// zeros the distribution is exact up to fifty pairs, else it is normal with the
// variance corrected for ties, zeros among them, without a correction for continuity. No pairs are 1.
func SignedRank(diff []float64) float64 {
	n := len(diff)
	if n == 0 {
		return 1
	}
	by := slices.Clone(diff)
	slices.SortFunc(by, func(a, b float64) int { return cmp.Compare(math.Abs(a), math.Abs(b)) })
	var plus, variance float64
	exact := n <= exactPairs
	for i := 0; i < n; {
		j := i
		for j < n && math.Abs(by[j]) == math.Abs(by[i]) {
			j++
		}
		rank := float64(i+1+j) / 2
		for _, d := range by[i:j] {
			switch {
			case d > 0:
				plus += rank
			case d == 0:
				plus += rank / 2
			}
		}
		t := float64(j - i)
		variance -= (t*t*t - t) / 48
		exact = exact && t == 1 && by[i] != 0
		i = j
	}
	if exact {
		return rankTail(n, int(plus))
	}
	m := float64(n)
	variance += m * (m + 1) * (2*m + 1) / 24
	if variance <= 0 {
		return 1
	}
	return normalCDF((m*(m+1)/4 - plus) / math.Sqrt(variance))
}

// rankTail is the probability that the positive ones of ranks 1 … n, each with even
// odds, sum to at least w.
func rankTail(n, w int) float64 {
	p := make([]float64, n*(n+1)/2+1)
	p[0] = 1
	for k := 1; k <= n; k++ {
		for s := k * (k + 1) / 2; s >= 0; s-- {
			p[s] /= 2
			if s >= k {
				p[s] += p[s-k] / 2
			}
		}
	}
	tail := 0.0
	for s := len(p) - 1; s >= w; s-- {
		tail += p[s]
	}
	return min(tail, 1)
}
