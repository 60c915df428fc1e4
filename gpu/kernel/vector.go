package kernel

import "math"

// block is the most elements one assembly call handles.
const block = 1 << 15

// Add computes dst += a.
func Add(dst, a []float32) {
	a = a[:len(dst)]
	if level == generic {
		for i := range dst {
			dst[i] += a[i]
		}
		return
	}
	for i := 0; i < len(dst); i += block {
		add(&dst[i], &a[i], min(block, len(dst)-i))
	}
}

// AddTo computes dst = a + b; dst may be a or b.
func AddTo(dst, a, b []float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	if level == generic {
		for i := range dst {
			dst[i] = a[i] + b[i]
		}
		return
	}
	for i := 0; i < len(dst); i += block {
		addTo(&dst[i], &a[i], &b[i], min(block, len(dst)-i))
	}
}

// Axpy computes dst += s·x.
func Axpy(dst []float32, s float32, x []float32) {
	x = x[:len(dst)]
	if level == generic {
		for i := range dst {
			dst[i] = fma32(s, x[i], dst[i])
		}
		return
	}
	for i := 0; i < len(dst); i += block {
		axpy(&dst[i], &x[i], min(block, len(dst)-i), s)
	}
}

// Scale computes x *= s.
func Scale(x []float32, s float32) {
	if level == generic {
		for i := range x {
			x[i] *= s
		}
		return
	}
	for i := 0; i < len(x); i += block {
		scale(&x[i], min(block, len(x)-i), s)
	}
}

// MulScale computes dst = s·x·g elementwise; dst may be x or g.
func MulScale(dst, x, g []float32, s float32) {
	x, g = x[:len(dst)], g[:len(dst)]
	if level == generic {
		for i := range dst {
			dst[i] = x[i] * s * g[i]
		}
		return
	}
	for i := 0; i < len(dst); i += block {
		mulScale(&dst[i], &x[i], &g[i], min(block, len(dst)-i), s)
	}
}

// Dot is Σ a·b.
func Dot(a, b []float32) float32 {
	b = b[:len(a)]
	if level == generic {
		return dotGeneric(a, b)
	}
	if len(a) <= block && len(a) > 0 {
		return dot(&a[0], &b[0], len(a))
	}
	var s float32
	for i := 0; i < len(a); i += block {
		s += dot(&a[i], &b[i], min(block, len(a)-i))
	}
	return s
}

// Dot3 is Σ a·b·c.
func Dot3(a, b, c []float32) float32 {
	b, c = b[:len(a)], c[:len(a)]
	if level == generic {
		return dot3Generic(a, b, c)
	}
	var s float32
	for i := 0; i < len(a); i += block {
		s += dot3(&a[i], &b[i], &c[i], min(block, len(a)-i))
	}
	return s
}

// SumSquares is Σ x², summed in float64 over blocks of 4096 elements.
func SumSquares(x []float32) float64 {
	var s float64
	for len(x) > 0 {
		n := min(len(x), 4096)
		s += float64(Dot(x[:n], x[:n]))
		x = x[n:]
	}
	return s
}

// Max is the largest element, −Inf of none. x holds no NaN.
func Max(x []float32) float32 {
	if level == generic {
		return maximumGeneric(x)
	}
	m := float32(math.Inf(-1))
	for i := 0; i < len(x); i += block {
		m = max(m, maximum(&x[i], min(block, len(x)-i)))
	}
	return m
}

// ExpSum computes dst = exp(scale·x − shift) and returns the sum of dst; dst may
// be x. The exponential is good to about 2 ulp; arguments under −87.3 give
// 1.2e−38 and those over 88.37 give 2.4e38, NaN stays NaN.
func ExpSum(dst, x []float32, scale, shift float32) float32 {
	x = x[:len(dst)]
	if level == generic {
		return expSumGeneric(dst, x, scale, shift)
	}
	var s float32
	for i := 0; i < len(dst); i += block {
		s += expSum(&dst[i], &x[i], min(block, len(dst)-i), scale, shift)
	}
	return s
}

// SoftmaxGrad turns dp, the gradient of probabilities p, into scale times the
// gradient of their logits, given d = Σ p·dp.
func SoftmaxGrad(dp, p []float32, d, scale float32) {
	p = p[:len(dp)]
	if level == generic {
		for i := range dp {
			dp[i] = (dp[i] - d) * (p[i] * scale)
		}
		return
	}
	for i := 0; i < len(dp); i += block {
		softmaxGrad(&dp[i], &p[i], min(block, len(dp)-i), d, scale)
	}
}

// RMSNorm computes y = x·rstd·g and returns rstd = 1/√(mean x² + eps).
func RMSNorm(y, x, g []float32, eps float64) (rstd float32) {
	ss := Dot(x, x)
	rstd = float32(1 / math.Sqrt(float64(ss)/float64(len(x))+eps))
	MulScale(y, x, g, rstd)
	return rstd
}

// RMSNormGrad adds to dx and dg the gradients of x and g for the gradient dy of
// RMSNorm's result.
func RMSNormGrad(dx, dg, dy, x, g []float32, rstd float32) {
	dg, dy, x, g = dg[:len(dx)], dy[:len(dx)], x[:len(dx)], g[:len(dx)]
	coef := Dot3(dy, g, x) * rstd * rstd * rstd / float32(len(dx))
	if level == generic {
		normGradGeneric(dx, dg, dy, g, x, rstd, coef)
		return
	}
	for i := 0; i < len(dx); i += block {
		normGrad(&dx[i], &dg[i], &dy[i], &g[i], &x[i], min(block, len(dx)-i), rstd, coef)
	}
}

// SwiGLU computes dst = silu(gate)·up.
func SwiGLU(dst, gate, up []float32) {
	gate, up = gate[:len(dst)], up[:len(dst)]
	if level == generic {
		swigluGeneric(dst, gate, up)
		return
	}
	for i := 0; i < len(dst); i += block {
		swiglu(&dst[i], &gate[i], &up[i], min(block, len(dst)-i))
	}
}

// SwiGLUGrad writes the gradients of gate and up for the gradient d of
// silu(gate)·up. dgate may be gate and dup may be up.
func SwiGLUGrad(dgate, dup, d, gate, up []float32) {
	dgate, dup, gate, up = dgate[:len(d)], dup[:len(d)], gate[:len(d)], up[:len(d)]
	if level == generic {
		swigluGradGeneric(dgate, dup, d, gate, up)
		return
	}
	for i := 0; i < len(d); i += block {
		swigluGrad(&dgate[i], &dup[i], &d[i], &gate[i], &up[i], min(block, len(d)-i))
	}
}

// Adam holds the constants of one AdamW step over some parameters.
type Adam struct {
	GradScale    float64 // multiplies the gradient first (clipping)
	LR           float64
	Beta1, Beta2 float64
	Eps          float64
	WeightDecay  float64 // decoupled
	Step         int     // 1 for the first update
}

// AdamW updates parameters p and moments m, v from gradient g, and zeroes g
// (Loshchilov and Hutter 2019, as PyTorch computes it).
func AdamW(p, g, m, v []float32, h Adam) {
	g, m, v = g[:len(p)], m[:len(p)], v[:len(p)]
	bc1 := 1 - math.Pow(h.Beta1, float64(h.Step))
	bc2 := 1 - math.Pow(h.Beta2, float64(h.Step))
	c := [9]float32{
		float32(h.GradScale),
		float32(h.Beta1), float32(1 - h.Beta1),
		float32(h.Beta2), float32(1 - h.Beta2),
		float32(1 - h.LR*h.WeightDecay),
		float32(-h.LR / bc1), float32(1 / math.Sqrt(bc2)), float32(h.Eps),
	}
	if level == generic {
		adamwGeneric(p, g, m, v, &c)
		return
	}
	for i := 0; i < len(p); i += block {
		adamw(&p[i], &g[i], &m[i], &v[i], &c[0], min(block, len(p)-i))
	}
}

// Rope applies the half-split rotary embedding in place to heads vectors of
// 2·len(cos) elements that lie one after the other. sign +1 rotates forward, −1
// back (the gradient).
func Rope(x, cos, sin []float32, heads int, sign float32) {
	sin = sin[:len(cos)]
	x = x[:heads*2*len(cos)]
	if len(x) == 0 {
		return
	}
	if level == generic {
		ropeGeneric(x, cos, sin, heads, sign)
		return
	}
	rope(&x[0], &cos[0], &sin[0], heads, len(cos), sign)
}

// Dropout zeroes x[i] with probability p and scales the others by 1/(1−p). Which
// ones depends on (key, i) alone: the same call drops the same elements, forward
// and backward. 0 ≤ p < 1.
func Dropout(x []float32, key uint64, p float64) {
	limit := uint32(p * (1 << 32))
	scale := float32(1 / (1 - p))
	first, second := uint32(key), uint32(key>>32)
	if level == generic {
		dropoutGeneric(x, first, second, limit, scale)
		return
	}
	for i := 0; i < len(x); i += block {
		dropout(&x[i], min(block, len(x)-i), first+uint32(i), second, limit, scale)
	}
}
