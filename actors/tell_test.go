package actors

import (
	"fmt"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// BenchmarkTell times a trial's result from its report to the search that knows of it, as
// the Supervisor and the SearchAgent do: written to the journal and on disk, applied to
// the state, told to the search, which decides what is next at random.
func BenchmarkTell(b *testing.B) {
	var dims []space.Dimension
	for i := range 9 {
		dims = append(dims, space.MustParse(fmt.Sprint("x", i), "uniform(0, 1)"))
	}
	sp, err := space.New(dims...)
	if err != nil {
		b.Fatal(err)
	}
	strategy, err := search.NewStrategy("random", sp, search.Options{Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	log, err := journal.OpenFile(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	spec := job.Default()
	state := journal.NewState()
	commit := func(e journal.Event) {
		rec, err := e.Encode()
		if err == nil {
			err = log.Append(rec, true)
		}
		if err != nil {
			b.Fatal(err)
		}
		state.Apply(e)
	}
	s := search.New(strategy, search.NewASHA(search.ASHAConfig{Trials: 1 << 30, Resources: []float64{1, 3}, Eta: 3}), 1)
	next := func() search.Decision {
		ds, err := s.Next()
		if err != nil || len(ds) != 1 {
			b.Fatal(ds, err)
		}
		return ds[0]
	}
	d := next()
	for i := 0; b.Loop(); i++ {
		rep := &journal.TrialReport{Trial: d.Trial, Seq: d.Seq, Attempt: 1, Bits: 2 + 1/float64(1+i), Params: 1 << 20, State: train.State{Step: 100, Tokens: 1 << 16}}
		commit(journal.Event{Kind: journal.TrialEnded, Trial: rep})
		if err := s.Report(d.Seq, rep.Outcome(&spec)); err != nil {
			b.Fatal(err)
		}
		d = next()
		b.StopTimer()
		state.Apply(journal.Event{Kind: journal.Decided, Decision: &d})
		b.StartTimer()
	}
}
