package main

import (
	"bytes"
	"fmt"
)

// Weights of few bits lie in panels of 32 columns (outputs) and blocks of 32 rows. A
// block of 8 bits is [8 quads of rows][32 columns][4 rows] bytes; of 4 bits it is [4]
// such quads whose low nibbles are quad 2i, the high ones quad 2i+1. Beside each block
// lie 32 scales of half precision. A row of rounded activations is a record of 40 bytes
// a block: 32 int8, their scale, and what the weights' offset subtracts.
const (
	recordBytes  = 40
	recordScale  = 32
	recordOffset = 36
)

// blockKernels emits the products and the unpacking of such weights.
func blockKernels(e *emitter) []signature {
	sigs := []signature{roundBlocks(e), unpackHalves(e)}
	for _, bits := range []int{8, 4} {
		sigs = append(sigs, unpackBlocks(e, bits))
		if e.lanes == 8 {
			for mr := 1; mr <= 4; mr *= 2 {
				sigs = append(sigs, dotBytes(e, bits, mr))
			}
			continue
		}
		for mr := 1; mr <= dotRows; mr++ {
			sigs = append(sigs, dotTile(e, bits, mr))
		}
	}
	return sigs
}

// dotRows is how many rows the product of AVX-512 has in registers at most.
const dotRows = 6

// dotTile emits c[r][j] (+)= Σ over blocks of scale[j] · a's scale · Σ a·w for mr rows,
// lda and ldc bytes apart, and n ≤ 32 columns. The integers are exact; the floats are
// multiplied and added one by one, without fusing, as every other form does.
func dotTile(e *emitter, bits, mr int) signature {
	s := signature{name: fmt.Sprintf("dot%dx%d", bits, mr), args: []arg{
		{"c", "*float32"},
		{"a", "*byte"},
		{"q", "*byte"},
		{"scale", "*uint16"},
		{"lda", "int"},
		{"ldc", "int"},
		{"blocks", "int"},
		{"n", "int"},
		{"acc", "int"},
	}}
	e.begin(s)
	row := func(i, at int) string {
		return fmt.Sprintf([]string{"%d(SI)", "%d(SI)(R9*1)", "%d(SI)(R9*2)", "%d(SI)(R10*1)", "%d(SI)(R9*4)", "%d(SI)(R11*1)"}[i], at)
	}
	split := 1 // chains of sums a register of results has, so that they do not wait for each other
	if mr <= 2 {
		split = 2
	}
	sum := func(i, j, chain int) string { return e.v((i*2+j)*split + chain) }
	float := func(i, j int) string { return e.v(12 + i*2 + j) }
	e.f("MOVQ %s, DI", e.arg("c"))
	e.f("MOVQ %s, SI", e.arg("a"))
	e.f("MOVQ %s, DX", e.arg("q"))
	e.f("MOVQ %s, BX", e.arg("scale"))
	e.f("MOVQ %s, R9", e.arg("lda"))
	e.f("MOVQ %s, R13", e.arg("ldc"))
	e.f("MOVQ %s, CX", e.arg("blocks"))
	e.f("LEAQ (R9)(R9*2), R10")
	e.f("LEAQ (R9)(R9*4), R11")
	if bits == 4 {
		e.f("MOVL $0x0f0f0f0f, AX")
		e.f("VPBROADCASTD AX, Z30")
	}
	for i := range mr {
		for j := range 2 {
			e.zero(float(i, j))
		}
	}
	loop := fmt.Sprintf("loop%d", e.fresh())
	e.f("PCALIGN $32")
	e.label(loop)
	for i := range mr {
		for j := range 2 {
			e.f("VPBROADCASTD %s, %s", row(i, recordOffset), sum(i, j, 0))
			if split == 2 {
				e.zero(sum(i, j, 1))
			}
		}
	}
	quad := func(k int, w [2]string) {
		for i := range mr {
			x := e.v(26 + i%2)
			e.f("VPBROADCASTD %s, %s", row(i, 4*k), x)
			for j := range 2 {
				e.f("VPDPBUSD %s, %s, %s", x, w[j], sum(i, j, k%split))
			}
		}
	}
	if bits == 8 {
		for k := range 8 {
			e.f("VMOVDQU64 %d(DX), Z24", k*128)
			e.f("VMOVDQU64 %d(DX), Z25", k*128+64)
			quad(k, [2]string{"Z24", "Z25"})
		}
	} else {
		for k := range 4 {
			e.f("VMOVDQU64 %d(DX), Z28", k*128)
			e.f("VMOVDQU64 %d(DX), Z29", k*128+64)
			e.f("VPANDD Z30, Z28, Z24")
			e.f("VPANDD Z30, Z29, Z25")
			quad(2*k, [2]string{"Z24", "Z25"})
			e.f("VPSRLW $4, Z28, Z28")
			e.f("VPSRLW $4, Z29, Z29")
			e.f("VPANDD Z30, Z28, Z28")
			e.f("VPANDD Z30, Z29, Z29")
			quad(2*k+1, [2]string{"Z28", "Z29"})
		}
	}
	e.f("VCVTPH2PS (BX), Z28")
	e.f("VCVTPH2PS 32(BX), Z29")
	for i := range mr {
		for j := range 2 {
			x := sum(i, j, 0)
			if split == 2 {
				e.f("VPADDD %s, %s, %s", sum(i, j, 1), x, x)
			}
			e.f("VCVTDQ2PS %s, %s", x, x)
			e.f("VMULPS %s, %s, %s", e.v(28+j), x, x)
			e.f("VMULPS.BCST %s, %s, %s", row(i, recordScale), x, x)
			e.f("VADDPS %s, %s, %s", x, float(i, j), float(i, j))
		}
	}
	e.f("ADDQ $%d, SI", recordBytes)
	e.f("ADDQ $%d, DX", 32*4*bits)
	e.f("ADDQ $64, BX")
	e.f("DECQ CX")
	e.f("JNE %s", loop)

	store := fmt.Sprintf("store%d", e.fresh())
	e.f("MOVQ %s, CX", e.arg("n"))
	e.f("MOVQ $1, DX")
	e.f("SHLQ CX, DX")
	e.f("DECQ DX")
	e.f("KMOVW DX, K1")
	e.f("SHRQ $16, DX")
	e.f("KMOVW DX, K2")
	e.f("MOVQ %s, AX", e.arg("acc"))
	e.f("TESTQ AX, AX")
	e.f("JEQ %s", store)
	e.f("MOVQ DI, DX")
	for i := range mr {
		for j := range 2 {
			e.f("VADDPS.Z %d(DX), %s, K%d, %s", j*64, float(i, j), j+1, float(i, j))
		}
		e.f("ADDQ R13, DX")
	}
	e.label(store)
	for i := range mr {
		for j := range 2 {
			e.f("VMOVUPS %s, K%d, %d(DI)", float(i, j), j+1, j*64)
		}
		e.f("ADDQ R13, DI")
	}
	e.end()
	return s
}

// dotBytes emits the same for CPUs without dot products of bytes and 1, 2 or 4 rows, in
// passes of 32, 16 or 8 columns: products of pairs of bytes are summed to words, which have
// room for two of |weight| ≤ 128 by 127, and those to integers. Weights of 8 bits lose their
// offset first, and give their sign to the activation, since one side has none. c gets all
// 32 columns of each row, one row after the other.
func dotBytes(e *emitter, bits, mr int) signature {
	s := signature{name: fmt.Sprintf("dotRows%dx%d", bits, mr), args: []arg{{"c", "*float32"}, {"a", "*byte"}, {"q", "*byte"}, {"scale", "*uint16"}, {"lda", "int"}, {"blocks", "int"}}}
	e.begin(s)
	groups := 4 / mr // of 8 columns in a pass
	row := func(i, at int) string {
		return fmt.Sprintf([]string{"%d(R8)", "%d(R8)(R9*1)", "%d(R8)(R9*2)", "%d(R8)(R10*1)"}[i], at)
	}
	float := func(i, j int) string { return e.v(i*groups + j) }
	sum := func(i, j int) string { return e.v(4 + i*groups + j) }
	e.f("MOVQ %s, DI", e.arg("c"))
	e.f("MOVQ %s, SI", e.arg("a"))
	e.f("MOVQ %s, DX", e.arg("q"))
	e.f("MOVQ %s, BX", e.arg("scale"))
	e.f("MOVQ %s, R9", e.arg("lda"))
	e.f("MOVQ %s, CX", e.arg("blocks"))
	e.f("LEAQ (R9)(R9*2), R10")
	for _, c := range []struct {
		reg   int
		value uint32
	}{{13, 0x00010001}, {14, map[int]uint32{8: 0x80808080, 4: 0x0f0f0f0f}[bits]}} {
		e.f("MOVL $0x%08x, AX", c.value)
		e.f("VMOVD AX, X%d", c.reg)
		e.f("VPBROADCASTD X%d, Y%d", c.reg, c.reg)
	}
	e.f("MOVQ $%d, R12", mr)
	id := e.fresh()
	e.label(fmt.Sprintf("pass%d", id))
	e.f("MOVQ SI, R8")
	e.f("MOVQ DX, R11")
	e.f("MOVQ BX, R13")
	e.f("MOVQ CX, AX")
	for i := range 4 {
		e.zero(e.v(i))
	}
	e.label(fmt.Sprintf("loop%d", id))
	for i := range mr {
		for j := range groups {
			if bits == 8 {
				e.zero(sum(i, j))
			} else {
				e.f("VPBROADCASTD %s, %s", row(i, recordOffset), sum(i, j))
			}
		}
	}
	for k := range bits { // quads of 8 bits, two quads of 4
		for i := range mr {
			if bits == 8 && mr <= 2 {
				e.f("VPBROADCASTD %s, %s", row(i, 4*k), e.v(11+i*4))
			}
		}
		for j := range groups {
			e.f("VMOVDQU %d(R11), Y8", k*128+j*32)
			if bits == 8 {
				e.f("VPXOR Y14, Y8, Y8")
				e.f("VPABSB Y8, Y9")
			} else {
				e.f("VPAND Y14, Y8, Y9")
				e.f("VPSRLW $4, Y8, Y8")
				e.f("VPAND Y14, Y8, Y8")
			}
			for i := range mr {
				if bits == 8 {
					x := 11 + i%2*4
					if mr > 2 {
						e.f("VPBROADCASTD %s, Y%d", row(i, 4*k), x)
					}
					e.f("VPSIGNB Y8, Y%d, Y%d", x, 10+i%2*2)
					e.f("VPMADDUBSW Y%d, Y9, Y%d", 10+i%2*2, 10+i%2*2)
				} else {
					e.f("VPBROADCASTD %s, Y11", row(i, 8*k))
					e.f("VPBROADCASTD %s, Y15", row(i, 8*k+4))
					e.f("VPMADDUBSW Y11, Y9, Y11")
					e.f("VPMADDUBSW Y15, Y8, Y15")
					e.f("VPADDW Y11, Y15, Y%d", 10+i%2*2)
				}
				e.f("VPMADDWD Y13, Y%d, Y%d", 10+i%2*2, 10+i%2*2)
				e.f("VPADDD Y%d, %s, %s", 10+i%2*2, sum(i, j), sum(i, j))
			}
		}
	}
	for j := range groups {
		e.f("VCVTPH2PS %d(R13), Y8", j*16)
		for i := range mr {
			e.f("VBROADCASTSS %s, Y9", row(i, recordScale))
			e.f("VCVTDQ2PS %s, %s", sum(i, j), sum(i, j))
			e.f("VMULPS Y8, %s, %s", sum(i, j), sum(i, j))
			e.f("VMULPS Y9, %s, %s", sum(i, j), sum(i, j))
			e.f("VADDPS %s, %s, %s", sum(i, j), float(i, j), float(i, j))
		}
	}
	e.f("ADDQ $%d, R8", recordBytes)
	e.f("ADDQ $%d, R11", 32*4*bits)
	e.f("ADDQ $64, R13")
	e.f("DECQ AX")
	e.f("JNE loop%d", id)
	for i := range mr {
		for j := range groups {
			e.f("VMOVUPS %s, %d(DI)", float(i, j), i*128+j*32)
		}
	}
	e.f("ADDQ $%d, DI", groups*32)
	e.f("ADDQ $%d, DX", groups*32)
	e.f("ADDQ $%d, BX", groups*16)
	e.f("DECQ R12")
	e.f("JNE pass%d", id)
	e.end()
	return s
}

// roundBlocks emits a row's rounding to int8, block by block of 32 floats.
func roundBlocks(e *emitter) signature {
	s := signature{name: "roundBlocks", args: []arg{{"dst", "*byte"}, {"src", "*float32"}, {"blocks", "int"}, {"shift", "int"}}, doc: "roundBlocks rounds blocks of 32 floats to records of int8, for weights whose offset is 1<<shift."}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("src"))
	e.f("MOVQ %s, DX", e.arg("blocks"))
	e.f("MOVQ %s, CX", e.arg("shift"))
	for _, c := range []struct {
		reg  int
		bits uint32
	}{{13, 0x7fffffff}, {14, 0x0d800000}, {15, 0x42fe0000}} { // the mask of magnitudes, 2⁻¹⁰⁰, 127
		e.f("MOVL $0x%08x, AX", c.bits)
		e.f("VMOVD AX, X%d", c.reg)
	}
	e.f("VPBROADCASTD X13, %s", e.v(13))
	loop := fmt.Sprintf("loop%d", e.fresh())
	e.label(loop)
	n := 32 / e.lanes
	and := e.and()
	for i := range n {
		e.f("VMOVUPS %d(SI), %s", i*e.lanes*4, e.v(i))
		if i == 0 {
			e.f("%s %s, %s, %s", and, e.v(0), e.v(13), e.v(8))
			continue
		}
		e.f("%s %s, %s, %s", and, e.v(i), e.v(13), e.v(9))
		e.f("VMAXPS %s, %s, %s", e.v(9), e.v(8), e.v(8))
	}
	e.reduce("VMAXPS", "VMAXSS", 8)
	e.f("VMAXSS X14, X8, X8")
	e.f("VDIVSS X15, X8, X9")
	e.f("VMOVSS X9, %d(DI)", recordScale)
	e.f("VDIVSS X8, X15, X9")
	e.f("VBROADCASTSS X9, %s", e.v(9))
	for i := range n {
		e.f("VMULPS %s, %s, %s", e.v(9), e.v(i), e.v(i))
		e.f("VCVTPS2DQ %s, %s", e.v(i), e.v(i))
	}
	for i := range n {
		if i == 1 {
			e.f("VPADDD %s, %s, %s", e.v(1), e.v(0), e.v(8))
		} else if i > 1 {
			e.f("VPADDD %s, %s, %s", e.v(i), e.v(8), e.v(8))
		}
	}
	e.reduce("VPADDD", "VPADDD", 8)
	e.f("VMOVD X8, AX")
	e.f("SHLL CX, AX")
	e.f("NEGL AX")
	e.f("MOVL AX, %d(DI)", recordOffset)
	if e.lanes == 16 {
		e.f("VPMOVDB Z0, (DI)")
		e.f("VPMOVDB Z1, 16(DI)")
	} else {
		e.f("VPACKSSDW Y1, Y0, Y0")
		e.f("VPACKSSDW Y3, Y2, Y2")
		e.f("VPERMQ $0xD8, Y0, Y0")
		e.f("VPERMQ $0xD8, Y2, Y2")
		e.f("VPACKSSWB Y2, Y0, Y0")
		e.f("VPERMQ $0xD8, Y0, Y0")
		e.f("VMOVDQU Y0, (DI)")
	}
	e.f("ADDQ $128, SI")
	e.f("ADDQ $%d, DI", recordBytes)
	e.f("DECQ DX")
	e.f("JNE %s", loop)
	e.end()
	return s
}

// and is the bitwise instruction that reaches all registers.
func (e *emitter) and() string {
	if e.lanes == 16 {
		return "VPANDD"
	}
	return "VPAND"
}

// rowBytes is the length of a row of a float panel, which holds 2 registers.
func (e *emitter) rowBytes() int { return 2 * e.lanes * 4 }

// column is the operand of 32 columns' vector i in row k of float panels: one of 32, or
// two of 16 that lie R9 apart.
func (e *emitter) column(k, i int) string {
	if e.lanes == 16 || i < 2 {
		return fmt.Sprintf("%d(DI)", k*e.rowBytes()+i*e.lanes*4)
	}
	return fmt.Sprintf("%d(DI)(R9*1)", k*e.rowBytes()+(i-2)*32)
}

// unpackBlocks emits a panel's way back to floats.
func unpackBlocks(e *emitter, bits int) signature {
	s := signature{name: fmt.Sprintf("unpack%d", bits), args: []arg{{"dst", "*float32"}, {"q", "*byte"}, {"scale", "*uint16"}, {"blocks", "int"}, {"second", "int"}}}
	if bits == 8 {
		s.doc = "unpack8 writes blocks of 32 rows of a panel as floats. Where float panels have 16 columns the second lies so many bytes on."
	}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("q"))
	e.f("MOVQ %s, BX", e.arg("scale"))
	e.f("MOVQ %s, CX", e.arg("blocks"))
	e.f("MOVQ %s, R9", e.arg("second"))
	offset, mask := uint32(0xc3000000), 0xff // −128
	if bits == 4 {
		offset, mask = 0xc1000000, 0xf // −8
	}
	e.f("MOVL $0x%08x, AX", offset)
	e.f("VMOVD AX, X14")
	e.f("VPBROADCASTD X14, %s", e.v(14))
	e.f("MOVL $0x%x, AX", mask)
	e.f("VMOVD AX, X15")
	e.f("VPBROADCASTD X15, %s", e.v(15))
	vectors := 32 / e.lanes
	and := e.and()
	loop := fmt.Sprintf("loop%d", e.fresh())
	e.label(loop)
	for i := range vectors { // scale, and what the offset makes of it
		e.f("VCVTPH2PS %d(BX), %s", i*e.lanes*2, e.v(i))
		e.f("VMULPS %s, %s, %s", e.v(14), e.v(i), e.v(4+i))
	}
	for quad := range bits { // 8 of bytes, 4 of nibbles
		for i := range vectors {
			e.f("VMOVDQU%s %d(SI), %s", map[int]string{16: "64", 8: ""}[e.lanes], quad*128+i*e.lanes*4, e.v(8))
			for j := range 32 / bits {
				k, shift := quad*4+j, j*8
				if bits == 4 { // the low nibbles are four rows, the high ones the next four
					k, shift = quad*8+j, j%4*8+j/4*4
				}
				from := e.v(8)
				if shift > 0 {
					e.f("VPSRLD $%d, %s, %s", shift, e.v(8), e.v(9))
					from = e.v(9)
				}
				if shift+bits < 32 {
					e.f("%s %s, %s, %s", and, from, e.v(15), e.v(9))
				}
				e.f("VCVTDQ2PS %s, %s", e.v(9), e.v(9))
				e.f("VFMADD213PS %s, %s, %s", e.v(4+i), e.v(i), e.v(9))
				e.f("VMOVUPS %s, %s", e.v(9), e.column(k, i))
			}
		}
	}
	e.f("ADDQ $%d, SI", 32*4*bits)
	e.f("ADDQ $64, BX")
	e.f("ADDQ $%d, DI", 32*e.rowBytes())
	e.f("DECQ CX")
	e.f("JNE %s", loop)
	e.end()
	return s
}

// unpackHalves emits the same of bfloat16, [rows][32 columns].
func unpackHalves(e *emitter) signature {
	s := signature{name: "unpack16", args: []arg{{"dst", "*float32"}, {"q", "*byte"}, {"rows", "int"}, {"second", "int"}}, doc: "unpack16 writes rows of a panel of bfloat16 as floats."}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("q"))
	e.f("MOVQ %s, CX", e.arg("rows"))
	e.f("MOVQ %s, R9", e.arg("second"))
	loop := fmt.Sprintf("loop%d", e.fresh())
	e.label(loop)
	for i := range 32 / e.lanes {
		e.f("VPMOVZXWD %d(SI), %s", i*e.lanes*2, e.v(i))
		e.f("VPSLLD $16, %s, %s", e.v(i), e.v(i))
		e.f("VMOVUPS %s, %s", e.v(i), e.column(0, i))
	}
	e.f("ADDQ $64, SI")
	e.f("ADDQ $%d, DI", e.rowBytes())
	e.f("DECQ CX")
	e.f("JNE %s", loop)
	e.end()
	return s
}

// dotSwitch writes the Go function that picks the product of so many bits and rows.
func dotSwitch(w *bytes.Buffer) {
	fmt.Fprintf(w, "\nfunc dotBlocksAVX512(bits, mr int, c *float32, a, q *byte, scale *uint16, lda, ldc, blocks, n, acc int) {\nswitch bits<<3 | mr {\n")
	for _, bits := range []int{8, 4} {
		for mr := 1; mr <= dotRows; mr++ {
			fmt.Fprintf(w, "case %d<<3 | %d:\ndot%dx%dAVX512(c, a, q, scale, lda, ldc, blocks, n, acc)\n", bits, mr, bits, mr)
		}
	}
	fmt.Fprintf(w, "}\n}\n")
}
