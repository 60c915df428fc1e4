package train

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// flips is a model in which one bit of a parameter falls over at a step.
type flips struct {
	engine.Model
	at int
}

func (f *flips) Update(h engine.Hyper) (float64, error) {
	norm, err := f.Model.Update(h)
	if f.at--; f.at == 0 {
		w := f.State()[0].Data
		w[0] = math.Float32frombits(math.Float32bits(w[0]) ^ 1)
	}
	return norm, err
}

// One flipped bit on one rank, of which no loss tells, ends the training.
func TestRanksThatComeApart(t *testing.T) {
	dir, tok := corpora(t, 1)
	for _, at := range []int{0, 20} { // 0: never
		task := tinyTask(dir, tok)
		task.Dir = filepath.Join(dir, fmt.Sprint("apart", at))
		g := ring.NewGroup(2, 1)
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for r := range errs {
			wg.Go(func() {
				e := env()
				e.Rank, e.World, e.Ring = r, 2, g.Rank(r)
				if r == 1 {
					e.NewModel = func(c Config, threads, world int) (engine.Model, error) {
						m, err := newTestModel(c, threads, world)
						return &flips{m, at}, err
					}
				}
				_, errs[r] = Execute(t.Context(), task, e)
			})
		}
		wg.Wait()
		for r, err := range errs {
			if at == 0 && err != nil || at > 0 && (!errors.Is(err, ErrApart) || !strings.Contains(err.Error(), "rank 1's")) {
				t.Errorf("a bit flipped at step %d of rank 1: rank %d says %v", at, r, err)
			}
		}
	}
}
