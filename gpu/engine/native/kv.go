package native

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

var _ engine.KVCache = (*Decoder)(nil)

// KVBlock implements engine.KVCache: whole panels, at every level.
func (d *Decoder) KVBlock() int { return kernel.PanelWidth }

// KVFloats implements engine.KVCache.
func (d *Decoder) KVFloats() int {
	D := d.arch.HeadDim()
	return d.arch.Layers * d.arch.KVHeads * kernel.PanelWidth * (D + kernel.PackedLen(D, 1))
}

// SaveKV implements engine.KVCache.
func (d *Decoder) SaveKV(seq, from int, dst []float32) error {
	c := d.caches[seq]
	if c == nil || from < 0 || from%kernel.PanelWidth != 0 || from+kernel.PanelWidth > c.n {
		return fmt.Errorf("native: sequence %d has no whole block of keys and values at token %d: it holds %d", seq, from, d.Len(seq))
	}
	if len(dst) != d.KVFloats() {
		return fmt.Errorf("native: a block of keys and values is %d floats, not %d", d.KVFloats(), len(dst))
	}
	d.eachKV(c, from, func(part []float32) {
		copy(dst, part)
		dst = dst[len(part):]
	})
	return nil
}

// LoadKV implements engine.KVCache.
func (d *Decoder) LoadKV(seq int, src []float32) error {
	if n := d.Len(seq); n%kernel.PanelWidth != 0 {
		return fmt.Errorf("native: sequence %d holds %d tokens, which are no whole blocks", seq, n)
	}
	if len(src) != d.KVFloats() {
		return fmt.Errorf("native: a block of keys and values is %d floats, not %d", d.KVFloats(), len(src))
	}
	c, err := d.reach(seq, kernel.PanelWidth)
	if err != nil {
		return err
	}
	d.eachKV(c, c.n, func(part []float32) {
		copy(part, src)
		src = src[len(part):]
	})
	c.n += kernel.PanelWidth
	return nil
}

// Trim implements engine.KVCache.
func (d *Decoder) Trim(seq, n int) {
	if c := d.caches[seq]; c != nil {
		c.n = max(0, min(c.n, n))
	}
}

// eachKV gives the parts of a cache that hold the block at token from, always in one
// order and of the same lengths.
func (d *Decoder) eachKV(c *cache, from int, f func(part []float32)) {
	const B = kernel.PanelWidth
	T, D := d.arch.Context, d.arch.HeadDim()
	width := kernel.PackedLen(1, 1)
	ks, vs := kernel.PackedLen(T, D), kernel.PackedLen(D, T)
	for i := range d.arch.Layers * d.arch.KVHeads {
		f(c.k[i*ks+from*D : i*ks+(from+B)*D])
		for p := 0; p < D; p += width {
			f(c.v[i*vs+p*T+from*width : i*vs+p*T+(from+B)*width])
		}
	}
}
