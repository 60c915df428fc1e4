package serve

import (
	"container/list"
	"slices"
	"sync/atomic"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// prefixCache keeps the keys and values of earlier prompts, in the decoder's pages, each
// found by all that stands before its end; what was used last is kept longest. Texts
// share the pages with it and with each other. Owned by the scheduler's goroutine, but for
// its counters.
type prefixCache struct {
	kv     engine.KVCache
	size   int // tokens of a page
	most   int // pages
	blocks map[prefixKey]*list.Element
	used   *list.List // of *prefixBlock, the one used last in front
	made   uint64     // blocks ever; numbers are never used twice

	queries, hits atomic.Int64
}

// prefixKey is a page's tokens and the page before it, by number: no two texts
// share a key.
type prefixKey struct {
	before uint64
	tokens string // four bytes each
}

type prefixBlock struct {
	key  prefixKey
	id   uint64
	page engine.KVPage
}

func newPrefixCache(kv engine.KVCache, bytes int64) *prefixCache {
	at := kv.KV()
	return &prefixCache{kv: kv, size: at.Tokens, most: int(bytes / at.Bytes), blocks: map[prefixKey]*list.Element{}, used: list.New()}
}

func (c *prefixCache) key(before uint64, ids []int32) prefixKey {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = append(b, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return prefixKey{before, string(b)}
}

// chain is what is kept of the start of ids, page by page.
func (c *prefixCache) chain(ids []int32) (found []*list.Element) {
	last := uint64(0)
	for n := 0; n+c.size <= len(ids); n += c.size {
		e := c.blocks[c.key(last, ids[n:n+c.size])]
		if e == nil {
			break
		}
		found = append(found, e)
		last = e.Value.(*prefixBlock).id
	}
	return found
}

// touch makes a chain the one used last: its end is forgotten before its beginning, without
// which it can't be found.
func (c *prefixCache) touch(chain []*list.Element) {
	for _, e := range slices.Backward(chain) {
		c.used.MoveToFront(e)
	}
}

// load begins a sequence with what is kept of a prompt, never all of it: the last
// token is to be computed.
func (c *prefixCache) load(seq int, ids []int32) (n int, err error) {
	found := c.chain(ids)
	for _, e := range found {
		if err := c.kv.UseKV(seq, e.Value.(*prefixBlock).page); err != nil {
			return 0, err
		}
	}
	c.touch(found)
	if n = len(found) * c.size; n == len(ids) {
		n--
		c.kv.Trim(seq, n)
	}
	c.queries.Add(int64(len(ids)))
	c.hits.Add(int64(n))
	return n, nil
}

// save keeps the whole pages at the start of ids, which a sequence holds.
func (c *prefixCache) save(seq int, ids []int32) error {
	found := c.chain(ids)
	c.touch(found)
	last := uint64(0)
	if len(found) > 0 {
		last = found[len(found)-1].Value.(*prefixBlock).id
	}
	for n := len(found) * c.size; n+c.size <= len(ids) && len(found) < c.most; n += c.size {
		if len(c.blocks) >= c.most {
			c.forget()
		}
		page, err := c.kv.KeepKV(seq, n)
		if err != nil {
			return err
		}
		c.made++
		b := &prefixBlock{key: c.key(last, ids[n:n+c.size]), id: c.made, page: page}
		e := c.used.PushFront(b)
		c.blocks[b.key] = e
		found, last = append(found, e), b.id
	}
	c.touch(found)
	return nil
}

// forget lets go of the page that was used longest ago, and tells whether there was one.
func (c *prefixCache) forget() bool {
	e := c.used.Back()
	if e == nil {
		return false
	}
	b := c.used.Remove(e).(*prefixBlock)
	delete(c.blocks, b.key)
	c.kv.ReleaseKV(b.page)
	return true
}

// room makes so many pages free, if what is kept has as many.
func (c *prefixCache) room(pages int) {
	for c.kv.KV().Free < pages && c.forget() {
	}
}
