package token

import (
	"context"
	"fmt"
)

// TrainConfig says how large a vocabulary to make.
type TrainConfig struct {
	// VocabSize is the number of ids wanted, special tokens and bytes included;
	// at least MinVocab, at most MaxVocab.
	VocabSize int
	// MinFrequency is the smallest count that a pair must have to be merged;
	// 0 and 1 are the same.
	MinFrequency int
	// Threads count words at the same time; at least 1.
	Threads int
}

// MaxVocab bounds what a Trainer makes.
const MaxVocab = 1 << 20

// DefaultTrainConfig merges pairs that occur at least twice, on one thread.
func DefaultTrainConfig() TrainConfig {
	return TrainConfig{VocabSize: 4096, MinFrequency: 2, Threads: 1}
}

// Validate reports the first field that can't be.
func (c TrainConfig) Validate() error {
	switch {
	case c.VocabSize < MinVocab || c.VocabSize > MaxVocab:
		return fmt.Errorf("tokenizer: vocab size is %d, must be %d (special tokens and bytes) to %d", c.VocabSize, MinVocab, MaxVocab)
	case c.MinFrequency < 0:
		return fmt.Errorf("tokenizer: min frequency is %d, must not be negative", c.MinFrequency)
	case c.Threads < 1:
		return fmt.Errorf("tokenizer: threads is %d, must be at least 1", c.Threads)
	}
	return nil
}

// Train makes the tokenizer from what was added; the Trainer may go on afterwards.
// The merges are those of Hugging Face's BpeTrainer: always the pair with the
// highest count, of equals the one with the smaller ids. When the data has no
// more pairs the vocabulary is smaller than asked: see VocabSize. Training to a
// larger size only appends merges, so Truncate gives the smaller ones.
func (tr *Trainer) Train(ctx context.Context) (*Tokenizer, error) {
	tr.flush()
	t := &Tokenizer{split: SplitLlama3, ignoreMerges: true, bos: BOSID}
	for id, s := range specials {
		t.added = append(t.added, added{id: int32(id), content: s, special: true})
		t.symbols = append(t.symbols, s)
		t.inModel = append(t.inModel, true)
	}
	var byteID [256]uint32
	for i, b := range byteOrder {
		byteID[b] = uint32(int(numSpecials) + i)
		t.symbols = append(t.symbols, string([]byte{b}))
		t.inModel = append(t.inModel, true)
	}

	tr.counters = share(tr.counters)
	l, err := learn(tr.counters, &byteID, tr.cfg)
	if err != nil {
		return nil, fmt.Errorf("train tokenizer: %w", err)
	}
	for step := 0; len(t.symbols) < tr.cfg.VocabSize; step++ {
		if step&63 == 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("train tokenizer: %w", context.Cause(ctx))
		}
		left, right, ok := l.next()
		if !ok {
			break
		}
		t.merges = append(t.merges, [2]int32{int32(left), int32(right)})
		t.symbols = append(t.symbols, t.symbols[left]+t.symbols[right])
		t.inModel = append(t.inModel, true)
	}
	if err := t.finish(); err != nil {
		return nil, fmt.Errorf("train tokenizer: %w", err)
	}
	return t, nil
}
