package main

import "fmt"

// amx is the isa of the tile kernels. Their functions need no other.
var amx = isa{name: "AMX", reg: "Z", lanes: 16}

// Go's assembler knows no AMX: its instructions are VEX-encoded in three bytes (C4,
// then R X B = 111 and map 0F38, then W = 0, vvvv inverted, L = 0 and the prefix),
// an opcode and a ModRM byte; those that read or write memory have a SIB byte, whose
// index register is the distance between rows.
const (
	prefixNone = 0
	prefix66   = 1
)

// gpr are the numbers of the general registers that tile instructions address by.
var gpr = map[string]int{"AX": 0, "CX": 1, "DX": 2, "BX": 3, "SI": 6, "DI": 7, "R8": 8, "R9": 9, "R10": 10, "R11": 11, "R12": 12}

func (e *emitter) bytes(bs ...int) {
	for i, b := range bs {
		sep := "; "
		if i == len(bs)-1 {
			sep = "\n"
		}
		if i == 0 {
			e.buf.WriteString("\t")
		}
		fmt.Fprintf(&e.buf, "BYTE $0x%02x%s", b, sep)
	}
}

// tileMemory emits an instruction between tile t and the rows at base+disp, which
// lie the register stride apart.
func (e *emitter) tileMemory(prefix, opcode, t int, base, stride string, disp int) {
	b, x := gpr[base], gpr[stride]
	p0 := 1<<7 | (1-x>>3)<<6 | (1-b>>3)<<5 | 2
	e.bytes(0xc4, p0, 0x78|prefix, opcode, 2<<6|t<<3|4, x&7<<3|b&7,
		disp&255, disp>>8&255, disp>>16&255, disp>>24&255)
}

func (e *emitter) tileLoad(t int, base, stride string, disp int) {
	e.tileMemory(prefixF2, 0x4b, t, base, stride, disp)
}

func (e *emitter) tileStore(t int, base, stride string, disp int) {
	e.tileMemory(prefixF3, 0x4b, t, base, stride, disp)
}

func (e *emitter) tileZero(t int) { e.bytes(0xc4, 0xe2, 0x78|prefixF2, 0x49, 3<<6|t<<3) }

// tileDot emits TDPBF16PS: tile c += a·b.
func (e *emitter) tileDot(c, a, b int) {
	e.bytes(0xc4, 0xe2, (^b&15)<<3|prefixF3, 0x5c, 3<<6|c<<3|a)
}

// tileConfigure emits LDTILECFG of the 64 bytes at AX.
func (e *emitter) tileConfigure() { e.bytes(0xc4, 0xe2, 0x78|prefixNone, 0x49, 0) }

func (e *emitter) tileRelease() { e.bytes(0xc4, 0xe2, 0x78|prefixNone, 0x49, 0xc0) }

// amxKernels emits a kernel for each number of tiles of rows and of columns.
// Tiles 0–3 hold sums, row by row, 4 and 5 rows of A, 6 and 7 columns of B.
func amxKernels(e *emitter) (sigs []signature) {
	for mt := 1; mt <= 2; mt++ {
		for nt := 1; nt <= 2; nt++ {
			s := signature{name: fmt.Sprintf("tiles%dx%d", mt, nt), args: []arg{
				{"shape", "*tileShape"},
				{"c", "*float32"},
				{"a", "*float32"},
				{"b", "*float32"},
				{"astep", "int"},
				{"ldc", "int"},
				{"bstep", "int"},
				{"k", "int"},
				{"m", "int"},
				{"n", "int"},
				{"acc", "int"},
			}}
			if mt+nt == 2 {
				s.doc = "tilesMxN computes n panels of m times M by N tiles of C, in k steps of the shape's pairs; rows ldc, blocks of A astep and panels of B bstep bytes apart."
			}
			amxTiles(e, s, mt, nt)
			sigs = append(sigs, s)
		}
	}
	s := signature{name: "peakTiles", args: []arg{{"shape", "*tileShape"}, {"n", "int"}}, doc: "peakTiles runs n rounds of four tiles' products on tiles that hold zeros."}
	e.begin(s)
	e.f("MOVQ %s, AX", e.arg("shape"))
	e.f("MOVQ %s, CX", e.arg("n"))
	e.tileConfigure()
	id := e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	for t := range 4 {
		e.tileDot(t, 4+t/2, 6+t%2)
	}
	e.f("DECQ CX")
	e.f("JNE loop%d", id)
	e.tileRelease()
	e.f("RET")
	sigs = append(sigs, s, transpose(e, signature{
		name: "transposePairs", doc: "transposePairs rounds 16 columns of k rows of src to bf16 and writes them as 16 rows of pairs, 16 of them in every 512th element of tiles; k is a multiple of 32, distances in bytes.",
	}, func() {
		e.f("VMOVUPS interleave<>(SB), Z31")
		e.f("MOVQ SI, DX")
	}, func(i int) { // rows 2i and 2i+1 become 16 pairs
		e.f("VMOVUPS (DX), Z16")
		e.f("VMOVUPS (DX)(R9*1), Z17")
		e.evex(prefixF2, 0x72, i, 17, 16) // VCVTNE2PS2BF16: the low half from Z16
		e.f("VPERMW Z%d, Z31, Z%d", i, i)
		e.f("LEAQ (DX)(R9*2), DX")
	}, func() {
		e.f("MOVQ DX, SI")
		e.f("ADDQ $2048, DI")
		e.f("VMOVUPS interleave<>(SB), Z31")
	}))
	sigs = append(sigs, transpose(e, signature{
		name: "roundTransposed", doc: "roundTransposed rounds 16 rows of k elements of src to bf16 and writes them as 16 columns of pairs; k is a multiple of 32, distances in bytes.",
	}, func() {}, func(i int) {
		if i == 0 {
			e.f("MOVQ SI, DX")
		}
		e.f("VMOVUPS (DX), Z16")
		e.f("VMOVUPS 64(DX), Z17")
		e.evex(prefixF2, 0x72, i, 17, 16)
		e.f("ADDQ R9, DX")
	}, func() {
		e.f("ADDQ $128, SI")
		e.f("MOVQ BX, DI")
	}))
	s = signature{name: "roundTiles", args: []arg{{"dst", "*float32"}, {"src", "*float32"}, {"n", "int"}}, doc: "roundTiles rounds a row of n floats, a multiple of 32, to the 16 pairs of its place in every 512th element of tiles."}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("src"))
	e.f("MOVQ %s, CX", e.arg("n"))
	id = e.fresh()
	e.label(fmt.Sprintf("loop%d", id))
	e.f("VMOVUPS (SI), Z0")
	e.f("VMOVUPS 64(SI), Z1")
	e.evex(prefixF2, 0x72, 2, 1, 0)
	e.f("VMOVUPS Z2, (DI)")
	e.f("ADDQ $128, SI")
	e.f("ADDQ $2048, DI")
	e.f("SUBQ $32, CX")
	e.f("JGT loop%d", id)
	e.end()
	sigs = append(sigs, s)
	e.buf.WriteString("\n")
	e.interleave()
	return sigs
}

// transpose emits a loop over k, 32 at a time, that reads 16 rows of 16 pairs into
// Z0–Z15 and writes their transpose to rows at DI. Stride of src is in R9, of dst in
// R8; BX is past the last row written.
func transpose(e *emitter, s signature, begin func(), row func(i int), next func()) signature {
	s.args = []arg{{"dst", "*float32"}, {"src", "*float32"}, {"ldd", "int"}, {"lds", "int"}, {"k", "int"}}
	e.begin(s)
	e.f("MOVQ %s, DI", e.arg("dst"))
	e.f("MOVQ %s, SI", e.arg("src"))
	e.f("MOVQ %s, R8", e.arg("ldd"))
	e.f("MOVQ %s, R9", e.arg("lds"))
	e.f("MOVQ %s, CX", e.arg("k"))
	id := e.fresh()
	begin()
	e.label(fmt.Sprintf("loop%d", id))
	for i := range 16 {
		row(i)
	}
	z := func(op string, d, a, b int) { e.f("%s Z%d, Z%d, Z%d", op, b, a, d) }
	for i := 0; i < 16; i += 2 {
		z("VUNPCKLPS", 16+i, i, i+1)
		z("VUNPCKHPS", 17+i, i, i+1)
	}
	for i := 0; i < 16; i += 4 {
		z("VUNPCKLPD", i, 16+i, 18+i)
		z("VUNPCKHPD", i+1, 16+i, 18+i)
		z("VUNPCKLPD", i+2, 17+i, 19+i)
		z("VUNPCKHPD", i+3, 17+i, 19+i)
	}
	for i := range 4 { // of registers i, i+4, i+8 and i+12, lane by lane
		z("VSHUFF32X4 $0x88,", 16+i, i, i+4)
		z("VSHUFF32X4 $0xdd,", 20+i, i, i+4)
		z("VSHUFF32X4 $0x88,", 24+i, i+8, i+12)
		z("VSHUFF32X4 $0xdd,", 28+i, i+8, i+12)
	}
	for i := range 4 {
		z("VSHUFF32X4 $0x88,", i, 16+i, 24+i)
		z("VSHUFF32X4 $0xdd,", i+8, 16+i, 24+i)
		z("VSHUFF32X4 $0x88,", i+4, 20+i, 28+i)
		z("VSHUFF32X4 $0xdd,", i+12, 20+i, 28+i)
	}
	e.f("MOVQ DI, BX")
	for i := range 16 {
		e.f("VMOVUPS Z%d, (BX)", i)
		e.f("ADDQ R8, BX")
	}
	next()
	e.f("SUBQ $32, CX")
	e.f("JGT loop%d", id)
	e.end()
	return s
}

func amxTiles(e *emitter, s signature, mt, nt int) {
	e.begin(s)
	sum := func(i, j int) int { return 2*i + j }
	e.f("MOVQ %s, AX", e.arg("shape"))
	e.tileConfigure()
	e.f("MOVQ %s, DX", e.arg("b"))
	e.f("MOVQ $64, R9")
	e.f("MOVQ %s, R10", e.arg("ldc"))
	e.f("MOVQ $128, R8")
	id := e.fresh()
	l := func(name string) string { return fmt.Sprintf("%s%d", name, id) }
	e.label(l("panel"))
	e.f("MOVQ %s, SI", e.arg("a"))
	e.f("MOVQ %s, DI", e.arg("c"))
	e.f("MOVQ %s, R15", e.arg("m"))
	e.f("MOVQ DX, AX") // the next panel comes into the second-level cache meanwhile
	e.f("ADDQ %s, AX", e.arg("bstep"))

	e.label(l("rows"))
	second := func() { // R11: sixteen rows of C on
		e.f("MOVQ R10, R11")
		e.f("SHLQ $4, R11")
		e.f("ADDQ DI, R11")
	}
	e.f("CMPQ %s, $0", e.arg("acc"))
	e.f("JNE %s", l("load"))
	for i := range mt {
		for j := range nt {
			e.tileZero(sum(i, j))
		}
	}
	e.f("JMP %s", l("begin"))
	e.label(l("load"))
	second()
	for i := range mt {
		for j := range nt {
			e.tileLoad(sum(i, j), []string{"DI", "R11"}[i], "R10", 64*j)
		}
	}
	e.label(l("begin"))
	e.f("MOVQ SI, BX")
	e.f("MOVQ DX, R12")
	e.f("MOVQ R10, R13") // so do the next 32 rows of C, to be written
	e.f("SHLQ $5, R13")
	e.f("ADDQ DI, R13")
	e.f("MOVQ %s, CX", e.arg("k"))
	e.label(l("step"))
	for i := range mt {
		e.tileLoad(4+i, "BX", "R9", 1024*i)
	}
	for j := range nt {
		e.tileLoad(6+j, "R12", "R8", 64*j)
	}
	for i := range mt {
		for j := range nt {
			e.tileDot(sum(i, j), 4+i, 6+j)
		}
	}
	for i := range 4 {
		e.f("PREFETCHT1 %d(AX)", 64*i)
	}
	e.f("ADDQ $256, AX")
	for range 4 {
		e.bytes(0x41, 0x0f, 0x0d, 0x4d, 0)  // PREFETCHW (R13)
		e.bytes(0x41, 0x0f, 0x0d, 0x4d, 64) // PREFETCHW 64(R13)
		e.f("ADDQ R10, R13")
	}
	e.f("ADDQ $2048, BX")
	e.f("ADDQ $2048, R12")
	e.f("DECQ CX")
	e.f("JNE %s", l("step"))

	second()
	for i := range mt {
		for j := range nt {
			e.tileStore(sum(i, j), []string{"DI", "R11"}[i], "R10", 64*j)
		}
	}
	// On by 32 rows.
	e.f("ADDQ %s, SI", e.arg("astep"))
	e.f("MOVQ R10, R11")
	e.f("SHLQ $5, R11")
	e.f("ADDQ R11, DI")
	e.f("DECQ R15")
	e.f("JNE %s", l("rows"))

	e.f("ADDQ %s, DX", e.arg("bstep"))
	e.f("ADDQ $128, %s", e.arg("c"))
	e.f("DECQ %s", e.arg("n"))
	e.f("JNE %s", l("panel"))
	e.tileRelease()
	e.f("RET")
}
