package main

import (
	"bytes"
	"fmt"
	"slices"
)

var tileArgs = []arg{
	{"c", "*float32"},
	{"a", "*float32"},
	{"b", "*float32"},
	{"rsa", "int"},
	{"csa", "int"},
	{"ldc", "int"},
	{"k", "int"},
	{"n", "int"},
	{"acc", "int"},
}

// gemmKernels emits one tile kernel for each number of rows and for one and two
// registers of columns: c[r][j] (+)= Σ_k a[r·rsa + k·csa] · b[k·2·lanes + j],
// strides in bytes, n columns stored; acc is 0, 1 to add to c, or, of whole tiles of two
// registers, 2 to begin the sums with c.
//
// Rows 0–6 are addressed from one pointer and rows 7–13 from a second with the
// multiples 1, 2, 3, 4, 5, 6 of rsa, so that A is read where it lies: row-major
// or transposed are only two choices of (rsa, csa).
func gemmKernels(e *emitter) []signature {
	var sigs []signature
	for _, kind := range e.tiles() {
		for nv := 1; nv <= 2; nv++ {
			for mr := 1; mr <= e.rows; mr++ {
				s := signature{name: tileName(kind, mr, nv), args: tileArgs}
				tile(e, s, kind, mr, nv)
				sigs = append(sigs, s)
			}
		}
	}
	for mr := 1; mr <= halfRows; mr++ {
		s := signature{name: tileName("tileHalves", mr, 2), args: slices.Clone(tileArgs)}
		s.args[2].typ = "*byte"
		tile(e, s, "tileHalves", mr, 2)
		sigs = append(sigs, s)
	}
	sigs = append(sigs, packTranspose(e), packCopy(e), peak(e, "tile"))
	if e.lanes == 16 {
		sigs = append(sigs, peak(e, "tilePairs"))
		sigs = append(sigs, roundPairs(e), interleavePairs(e), packPairs(e))
	}
	return sigs
}

// tiles are the kinds of tile of an instruction set. Those of pairs multiply two
// bf16 a lane: k counts pairs there, and an element of A or B is one pair.
func (s isa) tiles() []string {
	if s.lanes == 16 {
		return []string{"tile", "tilePairs"}
	}
	return []string{"tile"}
}

// halfRows is the most rows of the tile that reads B as bfloat16, whose rows hold 32
// columns; with more, widening B once pays.
const halfRows = 4

func tileName(kind string, mr, nv int) string { return fmt.Sprintf("%s%dx%d", kind, mr, nv) }

func tile(e *emitter, s signature, kind string, mr, nv int) {
	e.begin(s)
	bytes := e.lanes * 4
	rowOfB := 2 * bytes
	if kind == "tileHalves" {
		rowOfB = 64
	}
	acc := func(i, j int) string { return e.v(i*nv + j) }
	b := []string{e.v(2 * e.rows), e.v(2*e.rows + 1)}
	bc := []string{e.v(2*e.rows + 2), e.v(2*e.rows + 3)}
	row := func(i int) string {
		base := "SI"
		if i >= 7 {
			base, i = "R8", i-7
		}
		return []string{"(" + base + ")", "(" + base + ")(R9*1)", "(" + base + ")(R9*2)", "(" + base + ")(R10*1)", "(" + base + ")(R9*4)", "(" + base + ")(R11*1)", "(" + base + ")(R10*2)"}[i]
	}
	e.f("MOVQ %s, DI", e.arg("c"))
	e.f("MOVQ %s, SI", e.arg("a"))
	e.f("MOVQ %s, DX", e.arg("b"))
	e.f("MOVQ %s, R9", e.arg("rsa"))
	e.f("MOVQ %s, R12", e.arg("csa"))
	e.f("MOVQ %s, R13", e.arg("ldc"))
	e.f("MOVQ %s, CX", e.arg("k"))
	if mr > 3 {
		e.f("LEAQ (R9)(R9*2), R10")
	}
	if mr > 5 {
		e.f("LEAQ (R9)(R9*4), R11")
	}
	if mr > 7 {
		e.f("LEAQ (SI)(R10*2), R8")
		e.f("ADDQ R9, R8")
	}
	if mr > 3 {
		e.f("MOVQ DI, AX")
		for i := range mr {
			e.f("PREFETCHT0 (AX)")
			if nv == 2 && e.lanes == 16 {
				e.f("PREFETCHT0 64(AX)")
			}
			if i+1 < mr {
				e.f("ADDQ R13, AX")
			}
		}
	}
	for i := range mr {
		for j := range nv {
			// The XMM form zeroes the whole register; it exists for 0–15 only in VEX.
			e.zero(acc(i, j))
		}
	}
	id := e.fresh()
	if kind == "tile" && nv == 2 { // go on with the sums in c
		begin := fmt.Sprintf("begin%d", id)
		e.f("MOVQ %s, AX", e.arg("acc"))
		e.f("CMPQ AX, $2")
		e.f("JNE %s", begin)
		e.f("MOVQ DI, AX")
		for i := range mr {
			for j := range nv {
				e.f("VMOVUPS %d(AX), %s", j*bytes, acc(i, j))
			}
			if i+1 < mr {
				e.f("ADDQ R13, AX")
			}
		}
		e.label(begin)
	}
	loop := fmt.Sprintf("loop%d", id)
	tail := fmt.Sprintf("tail%d", id)
	loop1 := fmt.Sprintf("single%d", id)
	store := fmt.Sprintf("store%d", id)
	step := func(u int) {
		for j := range nv {
			if kind == "tileHalves" {
				e.f("VPMOVZXWD %d(DX), %s", u*rowOfB+j*e.lanes*2, b[j])
				e.f("VPSLLD $16, %s, %s", b[j], b[j])
				continue
			}
			e.f("VMOVUPS %d(DX), %s", u*rowOfB+j*bytes, b[j])
		}
		for i := range mr {
			x := bc[i%2]
			e.f("VBROADCASTSS %s, %s", row(i), x)
			for j := range nv {
				if kind == "tilePairs" {
					e.evex(prefixF3, 0x52, i*nv+j, 2*e.rows+2+i%2, 2*e.rows+j) // VDPBF16PS
					continue
				}
				e.f("VFMADD231PS %s, %s, %s", b[j], x, acc(i, j))
			}
		}
		e.f("ADDQ R12, SI")
		if mr > 7 {
			e.f("ADDQ R12, R8")
		}
	}
	e.f("SUBQ $4, CX")
	e.f("JLT %s", tail)
	e.f("PCALIGN $32")
	e.label(loop)
	for u := range 4 {
		step(u)
	}
	e.f("ADDQ $%d, DX", 4*rowOfB)
	e.f("SUBQ $4, CX")
	e.f("JGE %s", loop)
	e.label(tail)
	e.f("ADDQ $4, CX")
	e.f("JEQ %s", store)
	e.label(loop1)
	step(0)
	e.f("ADDQ $%d, DX", rowOfB)
	e.f("DECQ CX")
	e.f("JNE %s", loop1)
	e.label(store)

	masked, accum, accumMasked := fmt.Sprintf("masked%d", id), fmt.Sprintf("accum%d", id), fmt.Sprintf("accumMasked%d", id)
	e.f("MOVQ %s, BX", e.arg("n"))
	e.f("MOVQ %s, AX", e.arg("acc"))
	e.f("CMPQ BX, $%d", nv*e.lanes)
	e.f("JNE %s", masked)
	e.f("CMPQ AX, $1")
	e.f("JEQ %s", accum)
	write := func(add, mask bool) {
		for i := range mr {
			for j := range nv {
				at := fmt.Sprintf("%d(DI)", j*bytes)
				if add && !mask {
					e.f("VADDPS %s, %s, %s", at, acc(i, j), acc(i, j))
				}
				switch {
				case !mask:
					e.f("VMOVUPS %s, %s", acc(i, j), at)
				case e.lanes == 16:
					if add {
						e.f("VADDPS.Z %s, %s, K%d, %s", at, acc(i, j), j+1, acc(i, j))
					}
					e.f("VMOVUPS %s, K%d, %s", acc(i, j), j+1, at)
				default:
					if add {
						e.f("VMASKMOVPS %s, %s, %s", at, b[j], bc[0])
						e.f("VADDPS %s, %s, %s", bc[0], acc(i, j), acc(i, j))
					}
					e.f("VMASKMOVPS %s, %s, %s", acc(i, j), b[j], at)
				}
			}
			if i+1 < mr {
				e.f("ADDQ R13, DI")
			}
		}
		e.end()
	}
	write(false, false)
	e.label(accum)
	write(true, false)
	e.label(masked)
	if e.lanes == 16 {
		e.f("MOVQ BX, CX")
		e.f("MOVQ $1, DX")
		e.f("SHLQ CX, DX")
		e.f("DECQ DX")
		e.f("KMOVW DX, K1")
		e.f("SHRQ $16, DX")
		e.f("KMOVW DX, K2")
	} else {
		e.f("LEAQ tileMask<>+64(SB), DX")
		e.f("SHLQ $2, BX")
		e.f("SUBQ BX, DX")
		for j := range nv {
			e.f("VMOVUPS %d(DX), %s", j*bytes, b[j])
		}
	}
	e.f("CMPQ AX, $1")
	e.f("JEQ %s", accumMasked)
	write(false, true)
	e.label(accumMasked)
	write(true, true)
}

// packTranspose emits packT: dst[k·width + j] = b[j·ldb + k] for 8 rows j and
// k columns (a multiple of 8), ldb and width in bytes.
func packTranspose(e *emitter) signature {
	s := signature{name: "packT", args: []arg{{"dst", "*float32"}, {"b", "*float32"}, {"ldb", "int"}, {"k", "int"}}, doc: "packT writes 8 rows of b, transposed, into 8 columns of a panel; k is a multiple of 8, ldb in bytes."}
	e.begin(s)
	width := 2 * e.lanes * 4
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("b"))
	e.f("MOVQ %s, R9", e.arg("ldb"))
	e.f("MOVQ %s, CX", e.arg("k"))
	e.f("LEAQ (R9)(R9*2), R10")
	e.f("LEAQ (SI)(R9*4), R8")
	id := e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	for half, base := range []string{"SI", "R8"} {
		for i, at := range []string{"(%s)", "(%s)(R9*1)", "(%s)(R9*2)", "(%s)(R10*1)"} {
			e.f("VMOVUPS "+at+", Y%d", base, half*4+i)
		}
	}
	for i := 0; i < 8; i += 2 {
		e.f("VUNPCKLPS Y%d, Y%d, Y%d", i+1, i, 8+i)
		e.f("VUNPCKHPS Y%d, Y%d, Y%d", i+1, i, 9+i)
	}
	for q := 0; q < 8; q += 4 { // rows q..q+3 of 4-wide columns
		e.f("VSHUFPS $0x44, Y%d, Y%d, Y%d", 10+q, 8+q, q)
		e.f("VSHUFPS $0xEE, Y%d, Y%d, Y%d", 10+q, 8+q, q+1)
		e.f("VSHUFPS $0x44, Y%d, Y%d, Y%d", 11+q, 9+q, q+2)
		e.f("VSHUFPS $0xEE, Y%d, Y%d, Y%d", 11+q, 9+q, q+3)
	}
	for i := range 4 {
		e.f("VPERM2F128 $0x20, Y%d, Y%d, Y8", 4+i, i)
		e.f("VMOVUPS Y8, %d(DI)", i*width)
		e.f("VPERM2F128 $0x31, Y%d, Y%d, Y9", 4+i, i)
		e.f("VMOVUPS Y9, %d(DI)", (4+i)*width)
	}
	e.f("ADDQ $32, SI")
	e.f("ADDQ $32, R8")
	e.f("ADDQ $%d, DI", 8*width)
	e.f("SUBQ $8, CX")
	e.f("JGT loop%d", id)
	e.end()
	return s
}

// packCopy emits packN: dst[k·width + j] = b[k·ldb + j] for a full panel.
func packCopy(e *emitter) signature {
	s := signature{name: "packN", args: []arg{{"dst", "*float32"}, {"b", "*float32"}, {"ldb", "int"}, {"k", "int"}}, doc: "packN copies k rows of one panel's width; ldb in bytes."}
	e.begin(s)
	bytes := e.lanes * 4
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("b"))
	e.f("MOVQ %s, R9", e.arg("ldb"))
	e.f("MOVQ %s, CX", e.arg("k"))
	id := e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	e.f("VMOVUPS (SI), %s", e.v(0))
	e.f("VMOVUPS %d(SI), %s", bytes, e.v(1))
	e.f("VMOVUPS %s, (DI)", e.v(0))
	e.f("VMOVUPS %s, %d(DI)", e.v(1), bytes)
	e.f("ADDQ R9, SI")
	e.f("ADDQ $%d, DI", 2*bytes)
	e.f("DECQ CX")
	e.f("JNE loop%d", id)
	e.end()
	return s
}

// Prefixes of an EVEX instruction.
const (
	prefixF3 = 2
	prefixF2 = 3
)

// evex emits the 512-bit register form of an instruction of map 0F38 that Go's
// assembler lacks: its operands in Intel's order.
func (e *emitter) evex(prefix, opcode, dst, src1, src2 int) {
	not := func(x, bit int) int { return 1 - x>>bit&1 }
	p0 := not(dst, 3)<<7 | not(src2, 4)<<6 | not(src2, 3)<<5 | not(dst, 4)<<4 | 2
	p1 := (^src1&15)<<3 | 1<<2 | prefix
	p2 := 2<<5 | not(src1, 4)<<3
	modrm := 3<<6 | dst&7<<3 | src2&7
	for _, b := range []int{0x62, p0, p1, p2, opcode} {
		fmt.Fprintf(&e.buf, "\tBYTE $0x%02x;", b)
	}
	fmt.Fprintf(&e.buf, "\tBYTE $0x%02x\n", modrm)
}

// roundPairs emits a row's rounding: n floats, a multiple of 32, become n/2 pairs.
func roundPairs(e *emitter) signature {
	s := signature{name: "roundPairs", args: []arg{{"dst", "*float32"}, {"src", "*float32"}, {"n", "int"}}, doc: "roundPairs rounds n floats, a multiple of 32, to bf16, two to an element."}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("src"))
	e.f("MOVQ %s, CX", e.arg("n"))
	id := e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	e.f("VMOVUPS (SI), Z0")
	e.f("VMOVUPS 64(SI), Z1")
	e.evex(prefixF2, 0x72, 2, 1, 0) // VCVTNE2PS2BF16: the low half from Z0
	e.f("VMOVUPS Z2, (DI)")
	e.f("ADDQ $128, SI")
	e.f("ADDQ $64, DI")
	e.f("SUBQ $32, CX")
	e.f("JGT loop%d", id)
	e.end()
	return s
}

// interleavePairs emits dst[i] = (x[i], y[i]) as bf16, n a multiple of 16.
func interleavePairs(e *emitter) signature {
	s := signature{name: "interleavePairs", args: []arg{{"dst", "*float32"}, {"x", "*float32"}, {"y", "*float32"}, {"n", "int"}}, doc: "interleavePairs rounds x and y to bf16 and pairs them, element by element; n is a multiple of 16."}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("x"))
	e.f("MOVQ %s, DX", e.arg("y"))
	e.f("MOVQ %s, CX", e.arg("n"))
	e.f("VMOVUPS interleave<>(SB), Z3")
	id := e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	e.f("VMOVUPS (SI), Z0")
	e.f("VMOVUPS (DX), Z1")
	e.evex(prefixF2, 0x72, 2, 1, 0)
	e.f("VPERMW Z2, Z3, Z2")
	e.f("VMOVUPS Z2, (DI)")
	e.f("ADDQ $64, SI")
	e.f("ADDQ $64, DX")
	e.f("ADDQ $64, DI")
	e.f("SUBQ $16, CX")
	e.f("JGT loop%d", id)
	e.end()
	return s
}

// peak emits n rounds of a tile's arithmetic without its memory.
func peak(e *emitter, kind string) signature {
	s := signature{name: "peak", args: []arg{{"n", "int"}}, doc: "peak runs n rounds of a full tile's multiply-adds on registers that hold zeros."}
	if kind == "tilePairs" {
		s.name, s.doc = "peakPairs", "peakPairs is peak in products of bf16."
	}
	e.begin(s)
	e.f("MOVQ %s, CX", e.arg("n"))
	for i := range 2*e.rows + 4 {
		e.zero(e.v(i))
	}
	id := e.fresh()
	e.f("PCALIGN $32")
	e.label(fmt.Sprintf("loop%d", id))
	for i := range 2 * e.rows {
		if kind == "tilePairs" {
			e.evex(prefixF3, 0x52, i, 2*e.rows+i%2, 2*e.rows+2)
			continue
		}
		e.f("VFMADD231PS %s, %s, %s", e.v(2*e.rows+2), e.v(2*e.rows+i%2), e.v(i))
	}
	e.f("DECQ CX")
	e.f("JNE loop%d", id)
	e.end()
	return s
}

// packPairs emits a panel's packing in pairs: dst[p·32 + j] = (b[2p][j], b[2p+1][j]).
func packPairs(e *emitter) signature {
	s := signature{name: "packPairsN", args: []arg{{"dst", "*float32"}, {"b", "*float32"}, {"ldb", "int"}, {"k", "int"}}, doc: "packPairsN rounds 2k rows of one panel's width to bf16 and pairs each two; ldb in bytes."}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("b"))
	e.f("MOVQ %s, R9", e.arg("ldb"))
	e.f("MOVQ %s, CX", e.arg("k"))
	e.f("VMOVUPS interleave<>(SB), Z5")
	e.f("LEAQ (R9)(R9*1), R10")
	id := e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	e.f("VMOVUPS (SI), Z0")
	e.f("VMOVUPS 64(SI), Z3")
	e.f("VMOVUPS (SI)(R9*1), Z1")
	e.f("VMOVUPS 64(SI)(R9*1), Z4")
	e.evex(prefixF2, 0x72, 2, 1, 0)
	e.evex(prefixF2, 0x72, 6, 4, 3)
	e.f("VPERMW Z2, Z5, Z2")
	e.f("VPERMW Z6, Z5, Z6")
	e.f("VMOVUPS Z2, (DI)")
	e.f("VMOVUPS Z6, 64(DI)")
	e.f("ADDQ R10, SI")
	e.f("ADDQ $128, DI")
	e.f("DECQ CX")
	e.f("JNE loop%d", id)
	e.end()
	return s
}

// tileSwitch writes the Go function that picks the tile kernel.
func tileSwitch(w *bytes.Buffer, set isa, kind string) {
	if kind == "tileHalves" {
		fmt.Fprintf(w, "\nfunc %s%s(mr int, c, a *float32, b *byte, rsa, csa, ldc, k, n, acc int) {\n", kind, set.name)
		fmt.Fprintf(w, "switch mr {\n")
		for mr := halfRows; mr >= 1; mr-- {
			fmt.Fprintf(w, "case %d:\n%s%s(c, a, b, rsa, csa, ldc, k, n, acc)\n", mr, tileName(kind, mr, 2), set.name)
		}
		fmt.Fprintf(w, "}\n}\n")
		return
	}
	fmt.Fprintf(w, "\nfunc %s%s(mr int, c, a, b *float32, rsa, csa, ldc, k, n, acc int) {\n", kind, set.name)
	for nv := 2; nv >= 1; nv-- {
		if nv == 2 {
			fmt.Fprintf(w, "if n > %d {\n", set.lanes)
		}
		fmt.Fprintf(w, "switch mr {\n")
		for mr := set.rows; mr >= 1; mr-- {
			fmt.Fprintf(w, "case %d:\n%s%s(c, a, b, rsa, csa, ldc, k, n, acc)\n", mr, tileName(kind, mr, nv), set.name)
		}
		fmt.Fprintf(w, "}\n")
		if nv == 2 {
			fmt.Fprintf(w, "return\n}\n")
		}
	}
	fmt.Fprintf(w, "}\n")
}
