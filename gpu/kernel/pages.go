package kernel

// Pages of a matrix B, for products of few rows with what grows. A page holds PanelWidth
// columns of all K rows (Columns), or PanelWidth rows of all columns (Rows), packed as Pack
// does, from offset on.

// GemmColumns computes C[M,N] = A·B with the columns of B in pages, with the bits of
// GemmPacked. A is [M,K].
func GemmColumns(m, n, k int, a []float32, lda int, pages [][]float32, offset int, c []float32, ldc int) {
	if m <= 0 || n <= 0 || k <= 0 {
		return
	}
	_, width := shape()
	kb := evenly(k, blockK, 4)
	_, _ = c[(m-1)*ldc+n-1], a[(m-1)*lda+k-1]
	for j := 0; j < n; j += width {
		panel := pages[j/PanelWidth][offset+j%PanelWidth*k:][:k*width]
		for k0 := 0; k0 < k; k0 += kb {
			column(m, min(width, n-j), min(kb, k-k0), a[k0:], lda, panel[k0*width:], c[j:], ldc, sumOf(k0 > 0))
		}
	}
}

// GemmRows computes C[M,N] = A·B with the rows of B in pages, in sums of SumRows rows that
// are added up: what GemmPacked of so many rows at a time would, to the bit. A is [M,K];
// work holds M rows of N columns in whole panels.
func GemmRows(m, n, k int, a []float32, lda int, pages [][]float32, offset int, c []float32, ldc int, work []float32) {
	if m <= 0 || n <= 0 || k <= 0 {
		return
	}
	_, width := shape()
	whole := (n + width - 1) / width * width
	_, _, _ = c[(m-1)*ldc+n-1], a[(m-1)*lda+k-1], work[m*whole-1]
	for from := 0; from < k; from += SumRows {
		for at := from; at < min(k, from+SumRows); at += PanelWidth {
			to, rows := goOn, min(PanelWidth, k-at)
			if at == from {
				to = fresh
			}
			page := pages[at/PanelWidth][offset:]
			for j := 0; j < n; j += width {
				column(m, width, rows, a[at:], lda, page[j*PanelWidth:][:rows*width], work[j:], whole, to)
			}
		}
		for i := range m {
			sum, to := work[i*whole:i*whole+n], c[i*ldc:i*ldc+n]
			if from == 0 {
				copy(to, sum)
			} else {
				Add(to, sum)
			}
		}
	}
}

// column multiplies A by one panel. The caller has checked the bounds.
func column(m, n, k int, a []float32, lda int, panel, c []float32, ldc int, to sum) {
	if m == 1 && level != generic {
		tile(1, &c[0], &a[0], &panel[0], 4*lda, 4, 4*ldc, k, n, int(to))
		return
	}
	tiles(false, m, n, k, a, lda, 1, panel, k, c, ldc, to)
}
