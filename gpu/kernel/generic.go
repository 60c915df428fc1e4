package kernel

import "math"

// The portable forms: what every assembly kernel is tested against, and what runs
// where there is none.

// Constants of exp32, Cephes' expf.
const (
	expLo = -87.33654
	expHi = 88.37626
	ln2Hi = 0.693359375
	ln2Lo = -2.12194440e-4
)

func fma32(a, b, c float32) float32 { return float32(float64(a)*float64(b) + float64(c)) }

// exp32 is e^x to about 2 ulp, by the formula of the assembly: x = n·ln2 + r, a
// polynomial in r, scaled by 2^n. Arguments are clamped to [expLo, expHi].
func exp32(x float32) float32 {
	if x != x {
		return x
	}
	x = min(max(x, expLo), expHi)
	n := float32(math.RoundToEven(float64(x * math.Log2E)))
	r := fma32(-n, ln2Hi, x)
	r = fma32(-n, ln2Lo, r)
	p := float32(1.9875691500e-4)
	for _, c := range [...]float32{1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1, 1} {
		p = fma32(p, r, c)
	}
	return p * math.Float32frombits(uint32(int32(n)+127)<<23)
}

func dotGeneric(a, b []float32) float32 {
	var s [4]float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		for j := range 4 {
			s[j] += a[i+j] * b[i+j]
		}
	}
	for ; i < len(a); i++ {
		s[0] += a[i] * b[i]
	}
	return (s[0] + s[1]) + (s[2] + s[3])
}

func dot3Generic(a, b, c []float32) float32 {
	var s float32
	for i := range a {
		s += a[i] * b[i] * c[i]
	}
	return s
}

func maximumGeneric(x []float32) float32 {
	m := float32(math.Inf(-1))
	for _, v := range x {
		if v > m {
			m = v
		}
	}
	return m
}

func expSumGeneric(dst, x []float32, scale, shift float32) float32 {
	var sum float32
	for i, v := range x {
		e := exp32(fma32(v, scale, -shift))
		dst[i] = e
		sum += e
	}
	return sum
}

func normGradGeneric(dx, dg, dy, g, x []float32, rstd, coef float32) {
	for i := range dx {
		d := dy[i] * rstd
		dx[i] += d*g[i] - coef*x[i]
		dg[i] += d * x[i]
	}
}

func sigmoid(x float32) float32 { return 1 / (1 + exp32(-x)) }

func swigluGeneric(dst, gate, up []float32) {
	for i := range dst {
		dst[i] = gate[i] * up[i] * sigmoid(gate[i])
	}
}

func swigluGradGeneric(dgate, dup, d, gate, up []float32) {
	for i := range d {
		g, u, s := gate[i], up[i], sigmoid(gate[i])
		ds := d[i] * s
		dup[i] = ds * g
		ud := u * ds
		dgate[i] = ud + ud*(g-g*s)
	}
}

func adamwGeneric(p, g, m, v []float32, c *[9]float32) {
	for i := range p {
		x := g[i] * c[0]
		m[i] = m[i]*c[1] + x*c[2]
		v[i] = v[i]*c[3] + x*x*c[4]
		p[i] = p[i]*c[5] + c[6]*m[i]/(float32(math.Sqrt(float64(v[i])))*c[7]+c[8])
		g[i] = 0
	}
}

func ropeGeneric(x, cos, sin []float32, heads int, sign float32) {
	n := len(cos)
	for h := range heads {
		lo, hi := x[h*2*n:h*2*n+n], x[h*2*n+n:h*2*n+2*n]
		for i := range n {
			a, b, c, s := lo[i], hi[i], cos[i], sign*sin[i]
			lo[i] = a*c - b*s
			hi[i] = b*c + a*s
		}
	}
}

// hash32 is Wellons' lowbias32.
func hash32(x uint32) uint32 {
	x = (x ^ x>>16) * 0x7feb352d
	x = (x ^ x>>15) * 0x846ca68b
	return x ^ x>>16
}

func dropoutGeneric(x []float32, first, key, limit uint32, scale float32) {
	for i := range x {
		if hash32(hash32(first+uint32(i))^key) < limit {
			x[i] = 0
		} else {
			x[i] *= scale
		}
	}
}
