package policy

import (
	"errors"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// pagedMixture is a Mixture whose members all keep keys and values in pages of one size.
// They are asked the same things in the same order, so that where one shares a page all
// do: a page of the mixture is one of each, under the first one's number.
type pagedMixture struct {
	*Mixture
	caches []engine.KVCache
	kept   map[engine.KVPage]*keptPages
}

type keptPages struct {
	each  []engine.KVPage // by member
	times int
}

// paged tells a mixture's pages, where all members have them.
func paged(m *Mixture) engine.Decoder {
	p := &pagedMixture{Mixture: m, kept: map[engine.KVPage]*keptPages{}}
	for _, d := range m.members {
		c, ok := d.(engine.KVCache)
		if !ok || len(p.caches) > 0 && c.KV().Tokens != p.caches[0].KV().Tokens {
			return m
		}
		p.caches = append(p.caches, c)
	}
	return p
}

// KV implements engine.KVCache: there are as many pages as the member with the fewest has.
func (p *pagedMixture) KV() engine.KVState {
	all := p.caches[0].KV()
	for _, c := range p.caches[1:] {
		s := c.KV()
		all.Bytes += s.Bytes
		all.Pages, all.Free, all.Held = min(all.Pages, s.Pages), min(all.Free, s.Free), max(all.Held, s.Held)
	}
	return all
}

// KeepKV implements engine.KVCache.
func (p *pagedMixture) KeepKV(seq, from int) (engine.KVPage, error) {
	each := make([]engine.KVPage, 0, len(p.caches))
	for _, c := range p.caches {
		page, err := c.KeepKV(seq, from)
		if err != nil {
			for i, page := range each {
				p.caches[i].ReleaseKV(page)
			}
			return 0, err
		}
		each = append(each, page)
	}
	k := p.kept[each[0]]
	if k == nil {
		k = &keptPages{each: each}
		p.kept[each[0]] = k
	}
	k.times++
	return each[0], nil
}

// UseKV implements engine.KVCache.
func (p *pagedMixture) UseKV(seq int, page engine.KVPage) error {
	k := p.kept[page]
	if k == nil {
		return errors.New("mixture: a page that nobody keeps")
	}
	for i, c := range p.caches {
		if err := c.UseKV(seq, k.each[i]); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseKV implements engine.KVCache.
func (p *pagedMixture) ReleaseKV(page engine.KVPage) {
	k := p.kept[page]
	if k == nil {
		return
	}
	for i, c := range p.caches {
		c.ReleaseKV(k.each[i])
	}
	if k.times--; k.times == 0 {
		delete(p.kept, page)
	}
}

// Trim implements engine.KVCache.
func (p *pagedMixture) Trim(seq, n int) {
	for _, c := range p.caches {
		c.Trim(seq, n)
	}
}
