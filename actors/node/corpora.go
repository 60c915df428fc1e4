package node

import (
	"context"
	"errors"
	"fmt"
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
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: want, Threads: s.cores()})
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

// ensure lays the token files of a vocabulary down, once; with final those of
// the final training too.
func (s *site) ensure(ctx context.Context, vocab int, final bool) error {
	key := laid{vocab, final}
	s.mu.Lock()
	once := s.mu.corpora[key]
	if once == nil {
		once = &sync.Once{}
		s.mu.corpora[key] = once
	}
	s.mu.Unlock()
	once.Do(func() {
		lay := s.lay
		if final {
			lay = s.layFinal
		}
		var err error
		if s.crew.on.CUDA { // other GPUs may train meanwhile
			err = giveWay(func() error { return lay(ctx, vocab) })
		} else {
			err = lay(ctx, vocab)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.failed[key] = err
		if err != nil {
			delete(s.mu.corpora, key) // the next one tries again
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.failed[key]
}

// laid names a set of token files.
type laid struct {
	vocab int
	final bool
}

func (s *site) lay(ctx context.Context, vocab int) error {
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return err
	}
	for _, part := range []string{"train", "valid", "test"} {
		path := s.corpus(vocab, part)
		if ok, err := isCorpus(path); err != nil {
			return err
		} else if ok {
			continue
		}
		r, err := data.OpenPart(s.path("data"), part)
		if err != nil {
			return err
		}
		err = train.Tokenize(ctx, r, tok, path, part != "test")
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// The final training's own token files. Once the search has chosen, it learns
// from what it was chosen by: on one long text that lies next to what the model
// is for. The held-out part stays out.
const (
	finalCorpus = "final"
	guardCorpus = "guard"
)

func (s *site) layFinal(ctx context.Context, vocab int) error {
	if err := s.ensure(ctx, vocab, false); err != nil {
		return err
	}
	guard := s.corpus(vocab, guardCorpus)
	if ok, err := isCorpus(guard); err != nil || ok {
		return err
	}
	lens, err := s.byteLens(vocab)
	if err != nil {
		return err
	}
	return train.Carve(ctx, []string{s.corpus(vocab, "train"), s.corpus(vocab, "valid")}, s.corpus(vocab, finalCorpus), guard, lens)
}

// isCorpus tells whether a token file is there; one that is damaged is an error.
func isCorpus(path string) (bool, error) {
	c, err := train.OpenCorpus(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, c.Close()
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
