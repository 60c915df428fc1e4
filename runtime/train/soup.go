package train

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// Soup is a mean of several checkpoints' parameters, made greedily (Wortsman et al., ICML
// 2022): one after the other is taken in that makes the mean better. They have to come of
// one line of parents: what began apart has no mean that is any good.
type Soup struct {
	// Of says whose mean is the best: "final" is the model that it is compared with; then
	// "average" or "last", the average of the run's parameters or those of the run itself,
	// whichever that is not; then trials.
	Of []string `json:"of" msgpack:"of"`
	Comparison
}

// ingredient is what a soup may take in.
type ingredient struct {
	name   string
	params engine.StateDict
}

// soupShare bounds what a soup costs: of the training's arithmetic, as scoring a token
// takes a third of training on one. Two means are tried whatever they cost.
const soupShare = 0.02

// soup tries the mean of the model and own, then of the trials of Task.Soup too, and has it
// replace the model where it is better by more than noise. It is nil where there is nothing
// to take in.
func (c *contest) soup(own []ingredient) (*Soup, error) {
	each := min(averagingTokens, max(c.run.Valid.Tokens(), 1))
	room := max(2, int(3*soupShare*float64(c.state.Tokens)/float64(each)))
	var (
		of     = []string{"final"}
		params = c.params
		nll    = c.nll
		tried  bool
	)
	try := func(i ingredient) error {
		if !alike(i.params, c.params) {
			return nil
		}
		room, tried = room-1, true
		mean := mixed(params, i.params, 1/float32(len(of)+1))
		scores, _, err := windows(c.run, mean)
		if err == nil && total(scores) < total(nll) {
			of, params, nll = append(of, i.name), mean, scores
		}
		return err
	}
	for _, i := range own {
		if err := try(i); err != nil {
			return nil, err
		}
	}
	for _, dir := range c.task.Soup {
		if room <= 0 {
			break
		}
		p, err := Weights(dir)
		if err != nil {
			continue // a trial without a checkpoint is left out
		}
		if err := try(ingredient{filepath.Base(dir), p}); err != nil {
			return nil, err
		}
	}
	if !tried {
		return nil, nil
	}
	s := &Soup{of, compare(nll, c.nll, c.bytes)}
	if !s.Taken {
		return s, nil
	}
	c.params, c.nll, c.state.BestBits = params, nll, s.Bits
	return s, SaveCheckpoint(c.task.best(), params, c.state)
}

// Weights are a trial's: those that its score is of, where they were kept in BestDir, and
// otherwise those from which it would go on.
func Weights(dir string) (engine.StateDict, error) {
	s, _, err := LoadCheckpoint(BestDir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		s, _, err = LoadCheckpoint(filepath.Join(dir, "checkpoint"))
	}
	return Parameters(s), err
}

// alike tells whether parameters are of one shape.
func alike(a, b engine.StateDict) bool {
	return slices.EqualFunc(a, b, func(x, y engine.Tensor) bool { return x.Name == y.Name && slices.Equal(x.Shape, y.Shape) })
}

// mixed is a + share·(b − a).
func mixed(a, b engine.StateDict, share float32) engine.StateDict {
	out := a.Clone()
	for i, t := range out {
		for j, x := range b[i].Data {
			t.Data[j] += share * (x - t.Data[j])
		}
	}
	return out
}

func total(nll []float64) (sum float64) {
	for _, x := range nll {
		sum += x
	}
	return sum
}
