package native

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

var _ engine.KVCache = (*Decoder)(nil)

// pageLen is how many tokens' keys and values lie in a page: whole panels, at every level.
const pageLen = glm.PageTokens

// cache is what a sequence holds: pages, and how many tokens of them.
//
// Invariant: n tokens are in ⌈n/pageLen⌉ pages.
type cache struct {
	pages []engine.KVPage
	data  [][]float32 // of the pages
	n     int
}

// page is the keys and values of pageLen tokens, packed as attention reads them: for each
// layer and key/value head the keys as [D, pageLen] and the values as [pageLen, D] panels.
type page struct {
	data []float32
	seqs int // that have it
	kept int // how often KeepKV gave it
}

// pages is the memory of all sequences; a page's number is its place in all. Memory is
// taken when a page is first used and never given back.
type pages struct {
	floats int // of a page
	most   int
	all    []page
	free   []engine.KVPage
	held   int // pages that sequences have
}

// take is a page for a sequence, with whatever it held before.
func (p *pages) take() (engine.KVPage, error) {
	var id engine.KVPage
	switch n := len(p.free); {
	case n > 0:
		id, p.free = p.free[n-1], p.free[:n-1]
	case len(p.all) < p.most:
		id = engine.KVPage(len(p.all))
		p.all = append(p.all, page{data: make([]float32, p.floats)})
	default:
		return 0, fmt.Errorf("native: all %d pages of keys and values are taken: decode fewer sequences, or make the decoder with more (DecoderOptions.KVBytes)", p.most)
	}
	p.share(id)
	return id, nil
}

// share gives a page to one sequence more.
func (p *pages) share(id engine.KVPage) {
	if p.all[id].seqs++; p.all[id].seqs == 1 {
		p.held++
	}
}

// leave takes a page from a sequence.
func (p *pages) leave(id engine.KVPage) {
	if p.all[id].seqs--; p.all[id].seqs == 0 {
		p.held--
		if p.all[id].kept == 0 {
			p.free = append(p.free, id)
		}
	}
}

// cut leaves the pages that a sequence of n tokens does not need.
func (p *pages) cut(c *cache, n int) {
	need := (n + pageLen - 1) / pageLen
	for _, id := range c.pages[need:] {
		p.leave(id)
	}
	c.pages, c.data, c.n = c.pages[:need], c.data[:need], n
}

// extend gives a sequence the pages for n tokens more. The page that is written next is
// its own from then on. On an error it is as it was.
func (p *pages) extend(c *cache, n int) error {
	for len(c.pages)*pageLen < c.n+n {
		id, err := p.take()
		if err != nil {
			p.cut(c, c.n)
			return err
		}
		c.add(id, p)
	}
	last := c.n / pageLen
	if c.n%pageLen == 0 || p.all[c.pages[last]].seqs == 1 && p.all[c.pages[last]].kept == 0 {
		return nil
	}
	id, err := p.take()
	if err != nil {
		p.cut(c, c.n)
		return err
	}
	copy(p.all[id].data, p.all[c.pages[last]].data)
	p.leave(c.pages[last])
	c.pages[last], c.data[last] = id, p.all[id].data
	return nil
}

func (c *cache) add(id engine.KVPage, p *pages) {
	c.pages, c.data = append(c.pages, id), append(c.data, p.all[id].data)
}

// newPages is the memory for so many bytes, or, with 0, for full contexts.
func newPages(a glm.Arch, seqs int, bytes int64) (pages, error) {
	floats := int(a.PageBytes() / 4)
	full := (a.Context + pageLen - 1) / pageLen
	if bytes == 0 {
		return pages{floats: floats, most: seqs * full}, nil
	}
	most := min(bytes/a.PageBytes(), int64(seqs*full))
	if most < 1 {
		return pages{}, fmt.Errorf("native: %d bytes of keys and values are less than a page of %d tokens, which has %d (DecoderOptions.KVBytes)", bytes, pageLen, a.PageBytes())
	}
	return pages{floats: floats, most: int(most)}, nil
}

// part is where the keys and the values of a layer's key/value head begin in a page.
func (d *Decoder) part(head int) (keys, values int) {
	D := d.arch.HeadDim()
	k, v := pageLen*D, kernel.PackedLen(D, pageLen)
	return head * (k + v), head*(k+v) + k
}

// remember stores a token's keys and values, kv = [2·K·D].
func (d *Decoder) remember(layer int, r row, kv []float32) {
	K, D := d.arch.KVHeads, d.arch.HeadDim()
	width := kernel.PackedLen(1, 1)
	page, at := r.cache.data[r.pos/pageLen], r.pos%pageLen
	for h := range K {
		k, v := d.part(layer*K + h)
		keys := page[k+at/width*width*D+at%width:]
		for i, v := range kv[h*D : (h+1)*D] {
			keys[i*width] = v
		}
		values := page[v:]
		for i := 0; i < D; i += width {
			copy(values[i*pageLen+at*width:], kv[(K+h)*D+i:(K+h)*D+min(i+width, D)])
		}
	}
}

// KV implements engine.KVCache.
func (d *Decoder) KV() engine.KVState {
	p := &d.pages
	return engine.KVState{Tokens: pageLen, Bytes: int64(4 * p.floats), Pages: p.most, Free: p.most - len(p.all) + len(p.free), Held: p.held}
}

// KeepKV implements engine.KVCache.
func (d *Decoder) KeepKV(seq, from int) (engine.KVPage, error) {
	c := d.caches[seq]
	if c == nil || from < 0 || from%pageLen != 0 || from+pageLen > c.n {
		return 0, fmt.Errorf("native: sequence %d has no whole page of keys and values at token %d: it holds %d", seq, from, d.Len(seq))
	}
	id := c.pages[from/pageLen]
	d.pages.all[id].kept++
	return id, nil
}

// UseKV implements engine.KVCache.
func (d *Decoder) UseKV(seq int, id engine.KVPage) error {
	if n := d.Len(seq); n%pageLen != 0 {
		return fmt.Errorf("native: sequence %d holds %d tokens, which are no whole pages", seq, n)
	}
	if id < 0 || int(id) >= len(d.pages.all) || d.pages.all[id].kept == 0 {
		return fmt.Errorf("native: page %d of keys and values is not kept", id)
	}
	c, err := d.sequence(seq, pageLen)
	if err != nil {
		return err
	}
	d.pages.share(id)
	c.add(id, &d.pages)
	c.n += pageLen
	return nil
}

// ReleaseKV implements engine.KVCache.
func (d *Decoder) ReleaseKV(id engine.KVPage) {
	p := &d.pages.all[id]
	if p.kept--; p.kept == 0 && p.seqs == 0 {
		d.pages.free = append(d.pages.free, id)
	}
}

// Trim implements engine.KVCache.
func (d *Decoder) Trim(seq, n int) {
	if c := d.caches[seq]; c != nil {
		d.pages.cut(c, max(0, min(c.n, n)))
	}
}
