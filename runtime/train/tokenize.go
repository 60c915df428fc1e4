package train

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Examples is a stream of examples; io.EOF ends it.
type Examples interface {
	Next() (data.Example, error)
}

// Tokenize lays examples down as a corpus: BOS, then each segment's role token
// and text, EOS after what the model says itself. With endings false, as a
// held-out text is judged, no EOS is scored.
func Tokenize(ctx context.Context, src Examples, tok *token.Tokenizer, path string, endings bool) (err error) {
	w, err := CreateCorpus(path)
	if err != nil {
		return fmt.Errorf("token file: %w", err)
	}
	roles := map[string]int32{}
	for _, r := range []string{data.System, data.User, data.Assistant, data.EOS, data.BOS} {
		id, ok := tok.SpecialID(r)
		if !ok {
			w.Abort()
			return fmt.Errorf("the tokenizer lacks %s", r)
		}
		roles[r] = id
	}
	var ids []int32
	one := func(special string, scored bool) error { return w.Add([]int32{roles[special]}, scored, 0) }
	for {
		if err := context.Cause(ctx); err != nil {
			w.Abort()
			return err
		}
		ex, err := src.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = func() error {
				if !ex.Continued {
					w.Begin()
					if err := one(data.BOS, false); err != nil {
						return err
					}
				}
				plain, scored := false, false
				for _, s := range ex.Segments {
					if s.Role != "" {
						if err := one(s.Role, false); err != nil {
							return err
						}
					}
					ids = tok.Encode(ids[:0], s.Text)
					if err := w.Add(ids, s.Scored, len(s.Text)); err != nil {
						return err
					}
					if s.Role == data.Assistant {
						if err := one(data.EOS, s.Scored && endings); err != nil {
							return err
						}
					}
					plain, scored = s.Role == "", s.Scored
				}
				if plain && !ex.More {
					return one(data.EOS, scored && endings)
				}
				return nil
			}()
		}
		if err != nil {
			w.Abort()
			return fmt.Errorf("token file %s: %w", path, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("token file %s: %w", path, err)
	}
	return nil
}

// ByteLengths is the length of the text of each id; special tokens have none.
func ByteLengths(tok *token.Tokenizer) []int {
	out := make([]int, tok.VocabSize())
	for id := range out {
		out[id] = len(tok.Decode([]int32{int32(id)}))
	}
	return out
}
