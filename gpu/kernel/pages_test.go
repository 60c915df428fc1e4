package kernel

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Products with pages have the bits of those with the whole matrix, whose rows are summed
// SumRows at a time.
func TestPages(t *testing.T) {
	levels(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		for m := 1; m <= 66; m += 1 + m/8 {
			for _, k := range []int{1, 24, 64, 300} { // the inner dimension of Columns, columns of Rows
				n := 1 + r.IntN(3*SumRows)
				count := (n + PanelWidth - 1) / PanelWidth
				const offset = 7
				b := random(r, count*PanelWidth*k)
				a := random(r, m*(k+1))
				columns, rows := make([][]float32, count), make([][]float32, count)
				for p := range count {
					columns[p] = make([]float32, offset+PackedLen(PanelWidth, k))
					Pack(columns[p][offset:], NT, PanelWidth, k, b[p*PanelWidth*k:], k)
					rows[p] = make([]float32, offset+PackedLen(k, PanelWidth))
					Pack(rows[p][offset:], NN, k, PanelWidth, b[p*PanelWidth*k:], k)
				}
				packed := make([]float32, PackedLen(n, k))
				Pack(packed, NT, n, k, b, k)
				want, got := make([]float32, m*(n+2)), make([]float32, m*(n+2))
				GemmPacked(false, m, n, k, a, k+1, packed, k, want, n+2, false)
				GemmColumns(m, n, k, a, k+1, columns, offset, got, n+2)
				if !slices.Equal(bits(got), bits(want)) {
					t.Fatalf("%d×%d×%d: columns in pages give other bits", m, n, k)
				}
				scores := random(r, m*n)
				packed = make([]float32, PackedLen(k, n))
				Pack(packed, NN, k, n, b, k)
				want, got = make([]float32, m*(k+3)), make([]float32, m*(k+3))
				_, width := shape()
				for from := 0; from < n; from += SumRows {
					GemmPacked(false, m, k, min(SumRows, n-from), scores[from:], n, packed[from*width:], n, want, k+3, from > 0)
				}
				GemmRows(m, k, n, scores, n, rows, offset, got, k+3, make([]float32, m*PackedLen(k, 1)))
				if !slices.Equal(bits(got), bits(want)) {
					t.Fatalf("%d×%d×%d: rows in pages give other bits", m, k, n)
				}
			}
		}
	})
}
