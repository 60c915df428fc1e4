package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// EnsembleDir is where a build's folder has its ensemble, and EnsembleFile what says of
// whom it is made. Beside it lie the weights of each and their tokenizer, so that the
// folder can be taken along.
const (
	EnsembleDir  = "ensemble"
	EnsembleFile = "ensemble.json"
)

// Ensemble is a vote of the final model and trials: the weighted mean of the probabilities
// that they give each token.
type Ensemble struct {
	// Members vote; none where no vote was better than the final model.
	Members    []Member `json:"members"`
	Candidates int      `json:"candidates"` // the final model and the trials that were tried
	// Valid is on the text that chose; the trials have trained on parts of it, and the
	// final model on none. HeldOut is on what none has seen. Both compare the vote with the
	// final model alone.
	Valid   train.Comparison  `json:"validation"`
	HeldOut *train.Comparison `json:"held_out,omitempty"`

	tokenizer *token.Tokenizer // of one that openEnsemble read
}

// Member is a model of an Ensemble.
type Member struct {
	Model   string   `json:"model"`
	Weight  float64  `json:"weight"`
	Arch    glm.Arch `json:"arch"`
	Weights string   `json:"weights"`          // a file beside EnsembleFile
	Took    float64  `json:"ms_per_1k_tokens"` // to score, on the machine that built it

	params engine.StateDict
}

// Bounds of what an ensemble costs.
const (
	ensembleNear  = 1.1  // a trial's score over the final model's, beyond which it can add nothing
	ensembleMost  = 8    // models that are tried
	ensembleShare = 0.02 // of the final training's arithmetic, or
	ensembleLeast = 2e10 // so many operations, which take less than a second
)

// ensemble tries a vote of the final model and the trials that come near it, and keeps
// what is needed for it where it is better. What it may cost is known beforehand, and
// depends on no clock.
func (s *site) ensemble(ctx context.Context, st journal.State, final train.Task, params engine.StateDict) error {
	dir := s.path(EnsembleDir)
	if err := os.RemoveAll(dir); err != nil { // of an attempt that was cut off
		return err
	}
	vocab := final.Config.Arch.Vocab
	if err := s.ensure(ctx, vocab, true); err != nil {
		return err
	}
	guard, err := train.OpenCorpus(s.corpus(vocab, guardCorpus))
	if err != nil {
		return err
	}
	defer guard.Close()
	test, err := train.OpenCorpus(s.corpus(vocab, "test"))
	if err != nil {
		return err
	}
	defer test.Close()
	members, err := s.candidates(st, final, params, float64(guard.Tokens()+test.Tokens()))
	if err != nil || len(members) < 2 {
		return err
	}
	nll := make([][]float32, len(members))
	for i := range members {
		m := &members[i]
		begin := time.Now()
		if nll[i], err = tokenScores(ctx, m, guard, s.cores()); err != nil {
			return fmt.Errorf("%s: %w", m.Model, err)
		}
		m.Took = time.Since(begin).Seconds() * 1e6 / float64(max(guard.Tokens(), 1))
	}
	v := train.Select(nll, guard.Bytes())
	e := Ensemble{Members: []Member{}, Candidates: len(members), Valid: v.Comparison}
	if !v.Taken {
		return s.writeJSON(e, EnsembleDir, EnsembleFile)
	}
	var held [][]float32
	var weights []float64
	var alone []float32
	for i, m := range members {
		if v.Weights[i] == 0 && i > 0 {
			continue
		}
		scores, err := tokenScores(ctx, &m, test, s.cores())
		if err != nil {
			return fmt.Errorf("%s: %w", m.Model, err)
		}
		if i == 0 {
			alone = scores
		}
		if v.Weights[i] == 0 {
			continue
		}
		held, weights = append(held, scores), append(weights, v.Weights[i])
		m.Weight, m.Weights = v.Weights[i], m.Model+".safetensors"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := durable.Write(filepath.Join(dir, m.Weights), func(w io.Writer) error { return bundle.WriteSafetensors(w, m.params) }); err != nil {
			return err
		}
		e.Members = append(e.Members, m)
	}
	c := train.Compare(train.Mix(held, weights), alone, test.Bytes())
	e.HeldOut = &c
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return err
	}
	text, err := tok.MarshalJSON()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, "tokenizer.json"), text); err != nil {
		return err
	}
	return s.writeJSON(e, EnsembleDir, EnsembleFile)
}

// candidates are the final model and the trials that may add to it, best first, as far as
// scoring them on so many tokens is worth it. They share the final model's tokenizer.
func (s *site) candidates(st journal.State, final train.Task, params engine.StateDict, tokens float64) ([]Member, error) {
	cost := func(a glm.Arch) float64 { return a.FLOPsPerToken(a.Context) / 3 * 2 * tokens } // forward alone, in windows that overlap by half
	arch := final.Config.Arch
	room := max(ensembleLeast, ensembleShare*arch.FLOPsPerToken(arch.Context)*float64(st.Final.State.Tokens)) - cost(arch)
	out := []Member{{Model: "final", Arch: arch, params: params}}
	for _, t := range st.Leaderboard("").Trials {
		a := space.Arch(t.Config)
		if t.Bits == nil || *t.Bits > ensembleNear*st.Final.Bits || t.Status == "failed" || a.Vocab != arch.Vocab || st.StoppedByUser(t.ID) || len(out) == ensembleMost {
			continue
		}
		if room -= cost(a); room < 0 {
			break
		}
		weights, err := train.Weights(s.path("trials", t.ID))
		if err != nil {
			continue // a trial without a checkpoint does not vote
		}
		out = append(out, Member{Model: t.ID, Arch: a, params: weights})
	}
	return out, nil
}

// tokenScores scores a member on the processors.
func tokenScores(ctx context.Context, m *Member, c *train.Corpus, threads int) ([]float32, error) {
	n, err := native.New(m.Arch, native.Options{Threads: threads, MaxBatch: evalSequences, MaxSeq: m.Arch.Context, Inference: true})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	if err := n.Load(m.params); err != nil {
		return nil, err
	}
	return train.TokenScores(ctx, n, c, m.Arch.Context, evalSequences)
}

// IsEnsemble tells whether a folder is that of an ensemble.
func IsEnsemble(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, EnsembleFile))
	return err == nil
}

// ReadEnsemble reads what an ensemble is made of. The error is fs.ErrNotExist where there
// is none.
func ReadEnsemble(dir string) (Ensemble, error) {
	var e Ensemble
	path := filepath.Join(dir, EnsembleFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("%s: %w", path, err)
	}
	for i, m := range e.Members {
		if err := m.Arch.Validate(); err != nil {
			return e, fmt.Errorf("%s: members[%d].arch: %w", path, i, err)
		}
		if m.Weights != filepath.Base(m.Weights) || !(m.Weight > 0 && m.Weight <= 1) || m.Arch.Vocab != e.Members[0].Arch.Vocab {
			return e, fmt.Errorf("%s: members[%d] has the weights %q, the weight %g and a vocabulary of %d", path, i, m.Weights, m.Weight, m.Arch.Vocab)
		}
	}
	return e, nil
}

// EvaluateEnsemble scores the vote of an ensemble's folder on a user's file, as
// EvaluateFile does a bundle. It has no metric of the task: that would need answers, and
// an ensemble gives probabilities alone.
func EvaluateEnsemble(ctx context.Context, dir, path string) (Evaluation, error) {
	e, err := openEnsemble(dir)
	if err != nil {
		return Evaluation{}, err
	}
	tmp, err := os.MkdirTemp("", "autoglm-eval-")
	if err != nil {
		return Evaluation{}, err
	}
	defer os.RemoveAll(tmp)
	out, c, _, err := layFile(ctx, e.tokenizer, path, tmp)
	if err != nil {
		return out, err
	}
	defer c.Close()
	var nll [][]float32
	var weights []float64
	for i := range e.Members {
		m := &e.Members[i]
		scores, err := tokenScores(ctx, m, c, evalThreads())
		if err != nil {
			return out, fmt.Errorf("%s: %w", m.Model, err)
		}
		nll, weights = append(nll, scores), append(weights, m.Weight)
	}
	score := train.Score{Bytes: c.Bytes()}
	for _, x := range train.Mix(nll, weights) {
		score.NLL += float64(x)
		score.Tokens++
	}
	out.scored(score)
	return out, nil
}

// openEnsemble reads an ensemble with its members' weights and their tokenizer.
func openEnsemble(dir string) (Ensemble, error) {
	e, err := ReadEnsemble(dir)
	if err != nil {
		return e, err
	}
	if len(e.Members) == 0 {
		return e, fmt.Errorf("%s: no vote was better than the final model: take that one, %s", dir, filepath.Join(filepath.Dir(dir), "bundle"))
	}
	path := filepath.Join(dir, "tokenizer.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return e, err
	}
	if e.tokenizer, err = token.Parse(b); err != nil {
		return e, fmt.Errorf("%s: %w", path, err)
	}
	for i := range e.Members {
		m := &e.Members[i]
		if m.params, err = readWeights(filepath.Join(dir, m.Weights)); err != nil {
			return e, err
		}
	}
	return e, nil
}

func readWeights(path string) (_ engine.StateDict, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s, err := bundle.ReadSafetensors(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
