package serve

import (
	"container/list"
	"sync/atomic"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// prefixCache keeps the keys and values of earlier prompts, in blocks of tokens, each
// found by all that stands before its end; what was used last is kept longest. Owned
// by the scheduler's goroutine, but for its counters.
type prefixCache struct {
	kv     engine.KVCache
	most   int // blocks
	blocks map[prefixKey]*list.Element
	used   *list.List // of *prefixBlock, the one used last in front
	made   uint64     // blocks ever; numbers are never used twice

	queries, hits atomic.Int64
}

// prefixKey is a block's tokens and the block before it, by number: no two texts
// share a key.
type prefixKey struct {
	before uint64
	tokens string // four bytes each
}

type prefixBlock struct {
	key  prefixKey
	id   uint64
	data []float32
}

func newPrefixCache(kv engine.KVCache, bytes int64) *prefixCache {
	return &prefixCache{kv: kv, most: int(bytes / int64(4*kv.KVFloats())), blocks: map[prefixKey]*list.Element{}, used: list.New()}
}

func (c *prefixCache) key(before uint64, ids []int32) prefixKey {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = append(b, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return prefixKey{before, string(b)}
}

// chain calls f for each block at the start of ids that is kept, and returns the
// number of the last one and how many tokens they cover.
func (c *prefixCache) chain(ids []int32, f func(*prefixBlock) error) (last uint64, n int, err error) {
	size := c.kv.KVBlock()
	for n+size <= len(ids) {
		e := c.blocks[c.key(last, ids[n:n+size])]
		if e == nil {
			break
		}
		b := e.Value.(*prefixBlock)
		if err := f(b); err != nil {
			return last, n, err
		}
		c.used.MoveToFront(e)
		last, n = b.id, n+size
	}
	return last, n, nil
}

// load begins a sequence with what is kept of a prompt, never all of it: the last
// token is to be computed.
func (c *prefixCache) load(seq int, ids []int32) (n int, err error) {
	_, n, err = c.chain(ids, func(b *prefixBlock) error { return c.kv.LoadKV(seq, b.data) })
	if n == len(ids) {
		n--
		c.kv.Trim(seq, n)
	}
	c.queries.Add(int64(len(ids)))
	c.hits.Add(int64(n))
	return n, err
}

// save keeps the whole blocks at the start of ids, which a sequence holds.
func (c *prefixCache) save(seq int, ids []int32) error {
	if c.most == 0 {
		return nil
	}
	last, n, err := c.chain(ids, func(*prefixBlock) error { return nil })
	if err != nil {
		return err
	}
	for size := c.kv.KVBlock(); n+size <= len(ids); n += size {
		b := &prefixBlock{key: c.key(last, ids[n:n+size])}
		if len(c.blocks) >= c.most { // its memory is used again
			e := c.used.Back()
			old := c.used.Remove(e).(*prefixBlock)
			delete(c.blocks, old.key)
			b.data = old.data
		} else {
			b.data = make([]float32, c.kv.KVFloats())
		}
		c.made++
		b.id = c.made
		if err := c.kv.SaveKV(seq, n, b.data); err != nil {
			return err
		}
		c.blocks[b.key] = c.used.PushFront(b)
		last = b.id
	}
	return nil
}
