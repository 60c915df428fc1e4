package token

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"unsafe"
)

// Trainer counts the words of a corpus and learns merges from them. It belongs
// to one goroutine; its threads live only inside its calls.
type Trainer struct {
	cfg      TrainConfig
	counters []*wordTable // one a thread
	pending  []string     // small documents, counted together
	bytes    int          // of pending
	total    int64
}

// NewTrainer is a Trainer that has seen nothing.
func NewTrainer(cfg TrainConfig) (*Trainer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tr := &Trainer{cfg: cfg}
	seed := maphash.MakeSeed()
	for range cfg.Threads {
		tr.counters = append(tr.counters, newWordTable(seed))
	}
	return tr, nil
}

// flushBytes is how much text is gathered before the threads share it.
const flushBytes = 4 << 20

// Add counts one document. It doesn't keep text.
func (tr *Trainer) Add(text []byte) {
	tr.total += int64(len(text))
	if len(text) >= flushBytes {
		tr.flush()
		tr.count(cut(unsafe.String(unsafe.SliceData(text), len(text)), tr.cfg.Threads, parallelBytes))
		return
	}
	tr.pending = append(tr.pending, string(text))
	tr.bytes += len(text)
	if tr.bytes >= flushBytes {
		tr.flush()
	}
}

// Bytes is how much text was added so far.
func (tr *Trainer) Bytes() int64 { return tr.total }

// Feed counts one document, read to its end.
func (tr *Trainer) Feed(ctx context.Context, r io.Reader) error {
	tr.flush()
	buf := make([]byte, 0, flushBytes)
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("train tokenizer: %w", context.Cause(ctx))
		}
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		tr.total += int64(n)
		text := unsafe.String(unsafe.SliceData(buf), len(buf)) // words are copied before buf changes
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			tr.count(cut(text, tr.cfg.Threads, parallelBytes))
			return nil
		}
		if err != nil {
			return fmt.Errorf("train tokenizer: read text: %w", err)
		}
		q := -1
		if len(text) > 0 {
			q = safeCut(text, 0, len(text)-1)
		}
		if q <= 0 { // one piece as long as the buffer, or no letters: read more
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
			continue
		}
		tr.count(cut(text[:q], tr.cfg.Threads, parallelBytes))
		buf = append(buf[:0], buf[q:]...)
	}
}

// flush counts the pending documents, shared over the threads by size.
func (tr *Trainer) flush() {
	if len(tr.pending) == 0 {
		return
	}
	docs := tr.pending
	tr.pending, tr.bytes = nil, 0
	parallel(len(tr.counters), func(k int) {
		for i := k; i < len(docs); i += len(tr.counters) {
			tr.counters[k].count(docs[i])
		}
	})
}

// count counts parts at the same time; there are at most as many as threads.
func (tr *Trainer) count(parts []string) {
	parallel(len(parts), func(i int) { tr.counters[i].count(parts[i]) })
}
