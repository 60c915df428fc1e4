package engine

import (
	"fmt"
	"slices"
)

// CheckPrefill refuses what a Decoder can't append to a sequence. Engines put their name
// before the error, here and below.
func CheckPrefill(seq int, ids []int32, vocab int) error {
	if len(ids) == 0 {
		return fmt.Errorf("prefill of sequence %d with no tokens", seq)
	}
	return CheckIDs(ids, vocab)
}

// CheckDecode refuses what a Decoder can't append to sequences; known tells those that it
// holds.
func CheckDecode(seqs []int, ids []int32, vocab int, known func(seq int) bool) error {
	if len(seqs) != len(ids) || len(seqs) == 0 {
		return fmt.Errorf("decode of %d sequences with %d tokens; give each sequence one", len(seqs), len(ids))
	}
	if err := CheckIDs(ids, vocab); err != nil {
		return err
	}
	for i, s := range seqs {
		if !known(s) {
			return fmt.Errorf("decode of sequence %d, which holds nothing; Prefill it first", s)
		}
		if slices.Contains(seqs[:i], s) {
			return fmt.Errorf("decode names sequence %d twice", s)
		}
	}
	return nil
}

// CheckIDs refuses tokens that are not of the vocabulary.
func CheckIDs(ids []int32, vocab int) error {
	for i, id := range ids {
		if id < 0 || int(id) >= vocab {
			return fmt.Errorf("token %d is %d, vocabulary has %d", i, id, vocab)
		}
	}
	return nil
}
