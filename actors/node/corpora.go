package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// The tokenizer of the largest vocabulary, those cut from it, and the token files
// of each.

// tokenize trains the largest vocabulary of the search; smaller ones are cut
// from it.
func (s *site) tokenize(ctx context.Context) error {
	rep, err := s.report()
	if err != nil {
		return err
	}
	want := maxVocabFor(rep.Parts["train"].Bytes)
	if e, ok := s.spec.Space[space.Vocab]; ok {
		d, err := space.Parse(space.Vocab, string(e))
		if err != nil {
			return s.input(&job.FieldError{Path: "space.vocab", Msg: err.Error()})
		}
		want = int(d.High)
		for _, c := range d.Choices {
			want = max(want, int(c.Num))
		}
	}
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: want, Threads: len(s.devices) * s.threads})
	if err != nil {
		return actors.Final{Err: err}
	}
	part, err := data.OpenPart(s.path("data"), "train")
	if err != nil {
		return err
	}
	defer part.Close()
	if err := eachText(ctx, part, func(text string) { tr.Add([]byte(text)) }); err != nil {
		return err
	}
	tok, err := tr.Train(ctx)
	if err != nil {
		return err
	}
	if _, fixed := s.spec.Space[space.Vocab]; fixed && tok.VocabSize() < want {
		return s.input(&job.FieldError{Path: "space.vocab", Msg: fmt.Sprintf("the data gives a vocabulary of %d, %d is asked for; ask for less or bring more text", tok.VocabSize(), want)})
	}
	b, err := tok.MarshalJSON()
	if err != nil {
		return err
	}
	return durable.WriteFile(s.path("data", "tokenizer.json"), b)
}

// tokenizer is the one of that vocabulary; 0 is the largest.
func (s *site) tokenizer(vocab int) (*token.Tokenizer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.tok == nil {
		b, err := os.ReadFile(s.path("data", "tokenizer.json"))
		if err != nil {
			return nil, err
		}
		if s.mu.tok, err = token.Parse(b); err != nil {
			return nil, err
		}
	}
	if vocab == 0 || vocab == s.mu.tok.VocabSize() {
		return s.mu.tok, nil
	}
	return s.mu.tok.Truncate(vocab)
}

func (s *site) corpus(vocab int, part string) string {
	return s.path("data", "tokens", fmt.Sprintf("v%d", vocab), part+".bin")
}

// ensure lays the token files of a vocabulary down, once.
func (s *site) ensure(ctx context.Context, vocab int) error {
	s.mu.Lock()
	once := s.mu.corpora[vocab]
	if once == nil {
		once = &sync.Once{}
		s.mu.corpora[vocab] = once
	}
	s.mu.Unlock()
	once.Do(func() {
		err := s.lay(ctx, vocab)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.failed[vocab] = err
		if err != nil {
			delete(s.mu.corpora, vocab) // the next one tries again
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.failed[vocab]
}

func (s *site) lay(ctx context.Context, vocab int) error {
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return err
	}
	for _, part := range []string{"train", "valid", "test", fullCorpus} {
		path := s.corpus(vocab, part)
		if c, err := train.OpenCorpus(path); err == nil {
			c.Close()
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		parts := []string{part}
		if part == fullCorpus {
			parts = []string{"train", "valid"}
		}
		r := &chain{dir: s.path("data"), parts: parts}
		err := train.Tokenize(ctx, r, tok, path, part != "test")
		if err = errors.Join(err, r.close()); err != nil {
			return err
		}
	}
	return nil
}

// fullCorpus is train and valid together: once the search has chosen, the final
// training may learn from what it was chosen by. The held-out part stays out.
const fullCorpus = "full"

// chain reads parts one after the other.
type chain struct {
	dir   string
	parts []string
	open  *data.PartReader
}

// Next implements train.Examples.
func (c *chain) Next() (data.Example, error) {
	for {
		if c.open == nil {
			if len(c.parts) == 0 {
				return data.Example{}, io.EOF
			}
			r, err := data.OpenPart(c.dir, c.parts[0])
			if err != nil {
				return data.Example{}, err
			}
			c.open, c.parts = r, c.parts[1:]
		}
		ex, err := c.open.Next()
		if !errors.Is(err, io.EOF) {
			return ex, err
		}
		if err := c.close(); err != nil {
			return ex, err
		}
	}
}

func (c *chain) close() error {
	if c.open == nil {
		return nil
	}
	r := c.open
	c.open = nil
	return r.Close()
}

func (s *site) byteLens(vocab int) ([]int, error) {
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.lens[vocab] == nil {
		s.mu.lens[vocab] = train.ByteLengths(tok)
	}
	return s.mu.lens[vocab], nil
}
