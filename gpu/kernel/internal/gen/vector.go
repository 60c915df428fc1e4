package main

import (
	"fmt"
	"math"
)

// zero clears vector register i.
func (e *emitter) zero(reg string) {
	if e.lanes == 16 {
		e.f("VPXORD %s, %s, %s", reg, reg, reg)
	} else {
		e.f("VXORPS %s, %s, %s", reg, reg, reg)
	}
}

// bcast fills vector register i with a float argument.
func (e *emitter) bcast(name string, i int) { e.f("VBROADCASTSS %s, %s", e.arg(name), e.v(i)) }

// body emits one vector's work at byte offset off from the index AX; masked says
// that only the lanes of the tail exist.
type body struct {
	*emitter
	u      int // which of the unrolled copies
	masked bool
}

func (b *body) at(ptr string) string {
	return fmt.Sprintf("%d(%s)(AX*1)", b.u*b.lanes*4, ptr)
}

// load reads a vector; lanes past the end read zero.
func (b *body) load(ptr string, i int) {
	switch {
	case !b.masked:
		b.f("VMOVUPS %s, %s", b.at(ptr), b.v(i))
	case b.lanes == 16:
		b.f("VMOVUPS.Z %s, K1, %s", b.at(ptr), b.v(i))
	default:
		b.f("VMASKMOVPS %s, Y15, %s", b.at(ptr), b.v(i))
	}
}

func (b *body) store(i int, ptr string) {
	switch {
	case !b.masked:
		b.f("VMOVUPS %s, %s", b.v(i), b.at(ptr))
	case b.lanes == 16:
		b.f("VMOVUPS %s, K1, %s", b.v(i), b.at(ptr))
	default:
		b.f("VMASKMOVPS %s, Y15, %s", b.v(i), b.at(ptr))
	}
}

// only zeroes the lanes of register i that do not exist.
func (b *body) only(i int) {
	switch {
	case !b.masked:
	case b.lanes == 16:
		b.f("VMOVAPS.Z %s, K1, %s", b.v(i), b.v(i))
	default:
		b.f("VANDPS Y15, %s, %s", b.v(i), b.v(i))
	}
}

// op emits a three-operand instruction dst = a ∘ b in Go's reversed order, where
// a and b are given as in the formula.
func (e *emitter) op(name string, dst, a, b int) {
	e.f("%s %s, %s, %s", name, e.v(b), e.v(a), e.v(dst))
}

// fma emits dst += a·b.
func (e *emitter) fma(dst, a, b int) { e.f("VFMADD231PS %s, %s, %s", e.v(b), e.v(a), e.v(dst)) }

// loop emits work over CX elements: an unrolled loop, a loop of single vectors
// and a masked tail. The body may not use AX, BX, CX or register 15 (AVX2).
func (e *emitter) loop(unroll int, work func(b *body)) {
	id := e.fresh()
	step := e.lanes * 4
	e.f("XORQ AX, AX")
	if unroll > 1 {
		e.f("SUBQ $%d, CX", e.lanes*unroll)
		e.f("JLT unrolled%d", id)
		e.label(fmt.Sprintf("wide%d", id))
		for u := range unroll {
			work(&body{emitter: e, u: u})
		}
		e.f("ADDQ $%d, AX", step*unroll)
		e.f("SUBQ $%d, CX", e.lanes*unroll)
		e.f("JGE wide%d", id)
		e.label(fmt.Sprintf("unrolled%d", id))
		e.f("ADDQ $%d, CX", e.lanes*unroll)
	}
	e.f("SUBQ $%d, CX", e.lanes)
	e.f("JLT narrow%d", id)
	e.label(fmt.Sprintf("single%d", id))
	work(&body{emitter: e})
	e.f("ADDQ $%d, AX", step)
	e.f("SUBQ $%d, CX", e.lanes)
	e.f("JGE single%d", id)
	e.label(fmt.Sprintf("narrow%d", id))
	e.f("ADDQ $%d, CX", e.lanes)
	e.f("JEQ done%d", id)
	e.tailMask()
	work(&body{emitter: e, masked: true})
	e.label(fmt.Sprintf("done%d", id))
}

// tailMask makes the mask of CX lanes.
func (e *emitter) tailMask() {
	if e.lanes == 16 {
		e.f("MOVQ $1, BX")
		e.f("SHLQ CX, BX")
		e.f("DECQ BX")
		e.f("KMOVW BX, K1")
		return
	}
	e.f("SHLQ $2, CX")
	e.f("LEAQ tileMask<>+64(SB), BX")
	e.f("SUBQ CX, BX")
	e.f("VMOVUPS (BX), Y15")
}

// reduce folds register i to a scalar in X<i> with op, using register i+1.
func (e *emitter) reduce(op, scalar string, i int) {
	if e.lanes == 16 {
		e.f("VEXTRACTF64X4 $1, Z%d, Y%d", i, i+1)
		e.f("%s Y%d, Y%d, Y%d", op, i+1, i, i)
	}
	e.f("VEXTRACTF128 $1, Y%d, X%d", i, i+1)
	e.f("%s X%d, X%d, X%d", op, i+1, i, i)
	e.f("VPERMILPS $0x4E, X%d, X%d", i, i+1)
	e.f("%s X%d, X%d, X%d", op, i+1, i, i)
	e.f("VPERMILPS $0xB1, X%d, X%d", i, i+1)
	e.f("%s X%d, X%d, X%d", scalar, i+1, i, i)
}

// Constants of exp, in the order of the table.
const (
	cLo = iota
	cHi
	cLog2e
	cLn2Hi
	cLn2Lo
	cP0
	cP1
	cP2
	cP3
	cP4
	cP5
	cOne
	cBias
	cNegInf
	cMul1
	cMul2
	cSign
)

var constants = []uint32{
	cLo:     math.Float32bits(-87.33654),
	cHi:     math.Float32bits(88.37626),
	cLog2e:  math.Float32bits(1.44269504088896341),
	cLn2Hi:  math.Float32bits(0.693359375),
	cLn2Lo:  math.Float32bits(-2.12194440e-4),
	cP0:     math.Float32bits(1.9875691500e-4),
	cP1:     math.Float32bits(1.3981999507e-3),
	cP2:     math.Float32bits(8.3334519073e-3),
	cP3:     math.Float32bits(4.1665795894e-2),
	cP4:     math.Float32bits(1.6666665459e-1),
	cP5:     math.Float32bits(5.0000001201e-1),
	cOne:    math.Float32bits(1),
	cBias:   127,
	cNegInf: math.Float32bits(float32(math.Inf(-1))),
	cMul1:   0x7feb352d,
	cMul2:   0x846ca68b,
	cSign:   1 << 31,
}

func constant(i int) string { return fmt.Sprintf("constants<>+%d(SB)", i*64) }

// tables writes the read-only data: constants, each over a whole register, lane
// numbers, and the masks of AVX2's tails.
func (e *emitter) tables() {
	e.buf.WriteString("\n")
	for i, c := range constants {
		for lane := range 16 {
			fmt.Fprintf(&e.buf, "DATA constants<>+%d(SB)/4, $0x%08x\n", i*64+lane*4, c)
		}
	}
	fmt.Fprintf(&e.buf, "GLOBL constants<>(SB), RODATA|NOPTR, $%d\n\n", len(constants)*64)
	for lane := range 16 {
		fmt.Fprintf(&e.buf, "DATA lanes<>+%d(SB)/4, $%d\n", lane*4, lane)
	}
	e.buf.WriteString("GLOBL lanes<>(SB), RODATA|NOPTR, $64\n\n")
	if e.lanes == 16 {
		e.interleave()
		return
	}
	for lane := range 32 {
		v := uint32(0)
		if lane < 16 {
			v = 0xffffffff
		}
		fmt.Fprintf(&e.buf, "DATA tileMask<>+%d(SB)/4, $0x%08x\n", lane*4, v)
	}
	e.buf.WriteString("GLOBL tileMask<>(SB), RODATA|NOPTR, $128\n")
}

// interleave writes the order of words that pairs two registers' elements.
func (e *emitter) interleave() {
	for word := range 32 {
		fmt.Fprintf(&e.buf, "DATA interleave<>+%d(SB)/2, $%d\n", word*2, word/2+word%2*16)
	}
	e.buf.WriteString("GLOBL interleave<>(SB), RODATA|NOPTR, $64\n")
}

// exp replaces register x by e^x, with temporaries n and p: x = n·ln2 + r, a
// polynomial in r (Cephes expf), scaled by 2^n through the exponent field.
// Arguments are clamped to the range of normal numbers; NaN stays NaN.
func (e *emitter) exp(x, n, p int) {
	k := func(i int) string { return constant(i) }
	X, N, P := e.v(x), e.v(n), e.v(p)
	e.f("VMOVUPS %s, %s", k(cLo), N)
	e.f("VMAXPS %s, %s, %s", X, N, X) // the second operand wins on NaN
	e.f("VMOVUPS %s, %s", k(cHi), N)
	e.f("VMINPS %s, %s, %s", X, N, X)
	e.f("VMULPS %s, %s, %s", k(cLog2e), X, N)
	if e.lanes == 16 {
		e.f("VRNDSCALEPS $8, %s, %s", N, N)
	} else {
		e.f("VROUNDPS $8, %s, %s", N, N)
	}
	e.f("VFNMADD231PS %s, %s, %s", k(cLn2Hi), N, X)
	e.f("VFNMADD231PS %s, %s, %s", k(cLn2Lo), N, X)
	e.f("VCVTPS2DQ %s, %s", N, N)
	if e.lanes == 16 {
		e.f("VPADDD %s, %s, %s", k(cBias), N, N)
	} else {
		e.f("VPADDD %s, %s, %s", k(cBias), N, N)
	}
	e.f("VPSLLD $23, %s, %s", N, N)
	e.f("VMOVUPS %s, %s", k(cP0), P)
	for _, c := range []int{cP1, cP2, cP3, cP4, cP5, cOne, cOne} {
		e.f("VFMADD213PS %s, %s, %s", k(c), X, P)
	}
	e.f("VMULPS %s, %s, %s", N, P, X)
}

// hash replaces register x of 32-bit integers by a mixed one (Wellons'
// lowbias32), with temporary t.
func (e *emitter) hash(x, t int) {
	X, T := e.v(x), e.v(t)
	xor := func(shift int) {
		e.f("VPSRLD $%d, %s, %s", shift, X, T)
		if e.lanes == 16 {
			e.f("VPXORD %s, %s, %s", T, X, X)
		} else {
			e.f("VPXOR %s, %s, %s", T, X, X)
		}
	}
	xor(16)
	e.f("VPMULLD %s, %s, %s", constant(cMul1), X, X)
	xor(15)
	e.f("VPMULLD %s, %s, %s", constant(cMul2), X, X)
	xor(16)
}

// ptrs loads the pointer arguments and the count n into CX.
func (e *emitter) ptrs(names ...string) {
	regs := []string{"DI", "SI", "DX", "R8", "R9"}
	for i, n := range names {
		e.f("MOVQ %s, %s", e.arg(n), regs[i])
	}
	e.f("MOVQ %s, CX", e.arg("n"))
}

const (
	pf = "*float32"
	f3 = "float32"
	in = "int"
	u3 = "uint32"
)

func vectorKernels(e *emitter) []signature {
	var sigs []signature
	def := func(name, ret, doc string, args []arg, emit func()) {
		s := signature{name: name, args: args, ret: ret, doc: doc}
		e.begin(s)
		emit()
		e.end()
		sigs = append(sigs, s)
	}
	result := func(i int) { e.f("VMOVSS X%d, %s", i, e.arg("ret")) }

	def("add", "", "add: dst += a.", []arg{{"dst", pf}, {"a", pf}, {"n", in}}, func() {
		e.ptrs("dst", "a")
		e.loop(4, func(b *body) {
			b.load("DI", 0)
			b.load("SI", 1)
			b.op("VADDPS", 0, 0, 1)
			b.store(0, "DI")
		})
	})
	def("addTo", "", "addTo: dst = a + b.", []arg{{"dst", pf}, {"a", pf}, {"b", pf}, {"n", in}}, func() {
		e.ptrs("dst", "a", "b")
		e.loop(4, func(b *body) {
			b.load("SI", 0)
			b.load("DX", 1)
			b.op("VADDPS", 0, 0, 1)
			b.store(0, "DI")
		})
	})
	def("axpy", "", "axpy: dst += s·x.", []arg{{"dst", pf}, {"x", pf}, {"n", in}, {"s", f3}}, func() {
		e.ptrs("dst", "x")
		e.bcast("s", 14)
		e.loop(4, func(b *body) {
			b.load("DI", 0)
			b.load("SI", 1)
			b.fma(0, 1, 14)
			b.store(0, "DI")
		})
	})
	def("scale", "", "scale: x *= s.", []arg{{"x", pf}, {"n", in}, {"s", f3}}, func() {
		e.ptrs("x")
		e.bcast("s", 14)
		e.loop(4, func(b *body) {
			b.load("DI", 0)
			b.op("VMULPS", 0, 0, 14)
			b.store(0, "DI")
		})
	})
	def("mulScale", "", "mulScale: dst = s·x·gain.", []arg{{"dst", pf}, {"x", pf}, {"gain", pf}, {"n", in}, {"s", f3}}, func() {
		e.ptrs("dst", "x", "gain")
		e.bcast("s", 14)
		e.loop(2, func(b *body) {
			b.load("SI", 0)
			b.load("DX", 1)
			b.op("VMULPS", 0, 0, 14)
			b.op("VMULPS", 0, 0, 1)
			b.store(0, "DI")
		})
	})
	def("dot", f3, "dot: Σ a·b.", []arg{{"a", pf}, {"b", pf}, {"n", in}}, func() {
		e.ptrs("a", "b")
		for i := range 4 {
			e.zero(e.v(i))
		}
		e.loop(4, func(b *body) {
			b.load("DI", 4+b.u)
			b.load("SI", 8+b.u)
			b.fma(b.u, 4+b.u, 8+b.u)
		})
		e.op("VADDPS", 0, 0, 1)
		e.op("VADDPS", 2, 2, 3)
		e.op("VADDPS", 0, 0, 2)
		e.reduce("VADDPS", "VADDSS", 0)
		result(0)
	})
	def("dot3", f3, "dot3: Σ a·b·c.", []arg{{"a", pf}, {"b", pf}, {"c", pf}, {"n", in}}, func() {
		e.ptrs("a", "b", "c")
		e.zero(e.v(0))
		e.zero(e.v(1))
		e.loop(2, func(b *body) {
			b.load("DI", 4+b.u)
			b.load("SI", 6+b.u)
			b.load("DX", 8+b.u)
			b.op("VMULPS", 4+b.u, 4+b.u, 6+b.u)
			b.fma(b.u, 4+b.u, 8+b.u)
		})
		e.op("VADDPS", 0, 0, 1)
		e.reduce("VADDPS", "VADDSS", 0)
		result(0)
	})
	def("maximum", f3, "maximum is the largest element, −Inf of none; undefined where x holds NaN.", []arg{{"x", pf}, {"n", in}}, func() {
		e.ptrs("x")
		for i := range 4 {
			e.f("VMOVUPS %s, %s", constant(cNegInf), e.v(i))
		}
		e.loop(4, func(b *body) {
			switch {
			case b.masked && b.lanes == 16:
				b.f("VMAXPS %s, Z0, K1, Z0", b.at("DI"))
			case b.masked: // lanes that do not exist repeat the running maximum
				b.load("DI", 5)
				b.f("VBLENDVPS Y15, Y5, Y0, Y5")
				b.op("VMAXPS", 0, 0, 5)
			default:
				b.f("VMAXPS %s, %s, %s", b.at("DI"), b.v(b.u), b.v(b.u))
			}
		})
		e.op("VMAXPS", 0, 0, 1)
		e.op("VMAXPS", 2, 2, 3)
		e.op("VMAXPS", 0, 0, 2)
		e.reduce("VMAXPS", "VMAXSS", 0)
		result(0)
	})
	def("expSum", f3, "expSum: dst = exp(scale·x − shift), and its sum.", []arg{{"dst", pf}, {"x", pf}, {"n", in}, {"scale", f3}, {"shift", f3}}, func() {
		e.ptrs("dst", "x")
		e.bcast("scale", 14)
		e.bcast("shift", 13)
		e.zero(e.v(0))
		e.zero(e.v(1))
		e.loop(2, func(b *body) {
			i := 2 + 3*b.u
			b.load("SI", i)
			b.f("VFMSUB213PS %s, %s, %s", b.v(13), b.v(14), b.v(i))
			b.exp(i, i+1, i+2)
			b.store(i, "DI")
			b.only(i)
			b.op("VADDPS", b.u, b.u, i)
		})
		e.op("VADDPS", 0, 0, 1)
		e.reduce("VADDPS", "VADDSS", 0)
		result(0)
	})
	def("softmaxGrad", "", "softmaxGrad: dp = scale·p·(dp − d).", []arg{{"dp", pf}, {"p", pf}, {"n", in}, {"d", f3}, {"scale", f3}}, func() {
		e.ptrs("dp", "p")
		e.bcast("d", 14)
		e.bcast("scale", 13)
		e.loop(2, func(b *body) {
			b.load("DI", 0)
			b.load("SI", 1)
			b.op("VSUBPS", 0, 0, 14)
			b.op("VMULPS", 1, 1, 13)
			b.op("VMULPS", 0, 0, 1)
			b.store(0, "DI")
		})
	})
	def("normGrad", "", "normGrad: dx += rstd·dy·gain − coef·x and dg += rstd·dy·x.", []arg{{"dx", pf}, {"dg", pf}, {"dy", pf}, {"gain", pf}, {"x", pf}, {"n", in}, {"rstd", f3}, {"coef", f3}}, func() {
		e.ptrs("dx", "dg", "dy", "gain", "x")
		e.bcast("rstd", 14)
		e.bcast("coef", 13)
		e.loop(2, func(b *body) {
			b.load("DX", 0)
			b.load("R9", 1)
			b.load("R8", 2)
			b.load("DI", 3)
			b.load("SI", 4)
			b.op("VMULPS", 0, 0, 14)
			b.fma(3, 0, 2)
			b.fma(4, 0, 1)
			b.f("VFNMADD231PS %s, %s, %s", b.v(13), b.v(1), b.v(3))
			b.store(3, "DI")
			b.store(4, "SI")
		})
	})
	// sigmoid leaves 1/(1+e^−x) in register s for x in register x.
	sigmoid := func(b *body, s, x, t1, t2 int) {
		if b.lanes == 16 {
			b.f("VPXORD %s, %s, %s", constant(cSign), b.v(x), b.v(s))
		} else {
			b.f("VXORPS %s, %s, %s", constant(cSign), b.v(x), b.v(s))
		}
		b.exp(s, t1, t2)
		b.f("VMOVUPS %s, %s", constant(cOne), b.v(t1))
		b.op("VADDPS", s, s, t1)
		b.op("VDIVPS", s, t1, s)
	}
	def("swiglu", "", "swiglu: dst = silu(gate)·up.", []arg{{"dst", pf}, {"gate", pf}, {"up", pf}, {"n", in}}, func() {
		e.ptrs("dst", "gate", "up")
		e.loop(2, func(b *body) {
			i := 5 * b.u
			b.load("SI", i)
			b.load("DX", i+1)
			sigmoid(b, i+2, i, i+3, i+4)
			b.op("VMULPS", i, i, i+1)
			b.op("VMULPS", i, i, i+2)
			b.store(i, "DI")
		})
	})
	def("swigluGrad", "", "swigluGrad writes the gradients of gate and up for the gradient d of silu(gate)·up.", []arg{{"dgate", pf}, {"dup", pf}, {"d", pf}, {"gate", pf}, {"up", pf}, {"n", in}}, func() {
		e.ptrs("dgate", "dup", "d", "gate", "up")
		e.loop(2, func(b *body) {
			i := 6 * b.u
			g, u, d, s, t1, t2 := i, i+1, i+2, i+3, i+4, i+5
			b.load("R8", g)
			b.load("R9", u)
			b.load("DX", d)
			sigmoid(b, s, g, t1, t2)
			b.op("VMULPS", d, d, s)                                // d·σ
			b.op("VMULPS", t1, d, g)                               // d·σ·g
			b.store(t1, "SI")                                      // dup
			b.op("VMULPS", u, u, d)                                // u·d·σ
			b.op("VMULPS", t2, g, s)                               // g·σ
			b.op("VSUBPS", t2, g, t2)                              // g·(1−σ)
			b.f("VFMADD213PS %s, %s, %s", b.v(u), b.v(t2), b.v(u)) // u·t2 + u
			b.store(u, "DI")
		})
	})
	def("adamw", "", "adamw updates n parameters; c holds nine constants, see AdamW.", []arg{{"p", pf}, {"grad", pf}, {"m", pf}, {"v", pf}, {"c", pf}, {"n", in}}, func() {
		e.ptrs("p", "grad", "m", "v", "c")
		const gs, b1, b1c, b2, b2c, decay, step, root, eps = 5, 6, 7, 8, 9, 10, 11, 12, 13
		for i := range 9 {
			e.f("VBROADCASTSS %d(R9), %s", 4*i, e.v(5+i))
		}
		e.loop(1, func(b *body) {
			b.load("SI", 0)
			b.load("DX", 1)
			b.load("R8", 2)
			b.load("DI", 3)
			b.op("VMULPS", 0, 0, gs)
			b.op("VMULPS", 1, 1, b1)
			b.fma(1, 0, b1c)
			b.op("VMULPS", 4, 0, b2c)
			b.op("VMULPS", 2, 2, b2)
			b.fma(2, 4, 0)
			b.store(1, "DX")
			b.store(2, "R8")
			b.f("VSQRTPS %s, %s", b.v(2), b.v(2))
			b.f("VFMADD213PS %s, %s, %s", b.v(eps), b.v(root), b.v(2)) // √v·root + eps
			b.op("VMULPS", 1, 1, step)
			b.op("VDIVPS", 1, 1, 2)
			b.f("VFMADD213PS %s, %s, %s", b.v(1), b.v(decay), b.v(3)) // p·decay + step·m/denominator
			b.store(3, "DI")
			b.f("%s %s, %s, %s", map[int]string{16: "VPXORD", 8: "VXORPS"}[b.lanes], b.v(0), b.v(0), b.v(0))
			b.store(0, "SI")
		})
	})
	def("rope", "", "rope rotates the two halves of each of heads vectors of 2n by (cos, sign·sin).", []arg{{"x", pf}, {"cos", pf}, {"sin", pf}, {"heads", in}, {"n", in}, {"sign", f3}}, func() {
		e.f("MOVQ %s, DI", e.arg("x"))
		e.f("MOVQ %s, SI", e.arg("cos"))
		e.f("MOVQ %s, DX", e.arg("sin"))
		e.f("MOVQ %s, R10", e.arg("heads"))
		e.bcast("sign", 14)
		id := e.fresh()
		e.label(fmt.Sprintf("head%d", id))
		e.f("MOVQ %s, CX", e.arg("n"))
		e.f("LEAQ (DI)(CX*4), R8")
		e.loop(1, func(b *body) {
			b.load("DI", 0)
			b.load("R8", 1)
			b.load("SI", 2)
			b.load("DX", 3)
			b.op("VMULPS", 3, 3, 14)
			b.op("VMULPS", 4, 0, 2)
			b.op("VMULPS", 5, 1, 2)
			b.f("VFNMADD231PS %s, %s, %s", b.v(3), b.v(1), b.v(4)) // x₁cos − x₂sin
			b.fma(5, 0, 3)                                         // x₂cos + x₁sin
			b.store(4, "DI")
			b.store(5, "R8")
		})
		e.f("MOVQ %s, CX", e.arg("n"))
		e.f("LEAQ (DI)(CX*8), DI")
		e.f("DECQ R10")
		e.f("JNE head%d", id)
	})
	def("dropout", "", "dropout scales x[i] by scale, or zeroes it where hash(first+i, key) is under limit.", []arg{{"x", pf}, {"n", in}, {"first", u3}, {"key", u3}, {"limit", u3}, {"scale", f3}}, func() {
		e.ptrs("x")
		broadcast := func(name string, i int) {
			e.f("MOVL %s, BX", e.arg(name))
			if e.lanes == 16 {
				e.f("VPBROADCASTD BX, %s", e.v(i))
			} else {
				e.f("VMOVD BX, X%d", i)
				e.f("VPBROADCASTD X%d, Y%d", i, i)
			}
		}
		broadcast("first", 14)
		e.f("VPADDD lanes<>(SB), %s, %s", e.v(14), e.v(14))
		broadcast("key", 13)
		broadcast("limit", 12)
		e.bcast("scale", 11)
		e.f("MOVL $%d, BX", e.lanes)
		if e.lanes == 16 {
			e.f("VPBROADCASTD BX, Z10")
		} else {
			e.f("VMOVD BX, X10")
			e.f("VPBROADCASTD X10, Y10")
		}
		e.loop(1, func(b *body) {
			xor := map[int]string{16: "VPXORD", 8: "VPXOR"}[b.lanes]
			b.f("VMOVUPS %s, %s", b.v(14), b.v(0))
			b.hash(0, 1)
			b.f("%s %s, %s, %s", xor, b.v(13), b.v(0), b.v(0))
			b.hash(0, 1)
			b.f("VPADDD %s, %s, %s", b.v(10), b.v(14), b.v(14))
			b.load("DI", 2)
			b.op("VMULPS", 2, 2, 11)
			if b.lanes == 16 {
				b.f("VPCMPUD $5, Z12, Z0, K2") // not less than
				b.f("VMOVAPS.Z Z2, K2, Z2")
			} else {
				b.f("VPMAXUD Y12, Y0, Y1")
				b.f("VPCMPEQD Y0, Y1, Y1")
				b.f("VANDPS Y1, Y2, Y2")
			}
			b.store(2, "DI")
		})
	})
	return sigs
}
