package node

import (
	"context"
	"fmt"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// What is to be tried: the site's part in planning and searching.

// needs gathers what a plan is made from.
func (s *site) needs() (search.Needs, error) {
	rep, err := s.report()
	if err == nil {
		err = s.checkMetric(rep.Task)
	}
	if err != nil {
		return search.Needs{}, err
	}
	return search.Needs{
		WallClock: s.spec.Budget.WallClock.D().Seconds(), Trials: s.spec.Budget.Trials, MaxTokens: s.spec.Budget.Tokens,
		Scheduler: s.spec.Scheduler, Slots: len(s.crew.devices), Corpus: rep.Parts["train"].Bytes, HeldOut: rep.HeldOut.Bytes,
	}, nil
}

// Plan implements actors.Work.
func (s *site) Plan(ctx context.Context, active float64) (search.Plan, error) {
	n, err := s.needs()
	if err != nil {
		return search.Plan{}, err
	}
	n.Spent = active
	if n.WallClock > 0 {
		begin := time.Now()
		pacer, err := s.crew.pacer(ctx, engine.Precision(s.spec.Precision), min(1, 0.01*n.WallClock))
		if err != nil {
			return search.Plan{}, err
		}
		n.Pace = pacer.ofSize(s.spec, n.Corpus)
		n.Spent += time.Since(begin).Seconds()
	}
	p, err := search.MakePlan(n)
	if err != nil {
		return p, s.input(&job.FieldError{Path: "budget.wall_clock", Msg: err.Error()})
	}
	if s.spec.Timed() {
		if p.TokenTimes, err = timeTokens(ctx, s.spec.ServingThreads(), p.MaxParams); err != nil {
			return p, err
		}
	}
	_, first, err := s.space(p)
	if err != nil {
		return p, err
	}
	p.BaseWidth = first.Int(space.Dim)
	return p, nil
}

// space builds the space of a plan.
func (s *site) space(p search.Plan) (*space.Space, space.Config, error) {
	rep, err := s.report()
	if err != nil {
		return nil, nil, err
	}
	tok, err := s.tokenizer(0)
	if err != nil {
		return nil, nil, err
	}
	l := space.Limits{
		MinMatrix: p.MinParams, MaxMatrix: p.MaxParams, MaxVocab: tok.VocabSize(), Context: s.spec.MaxSeqLength, Epochs: p.Epochs,
		MaxContext: int(max(16, rep.Parts["valid"].Bytes/8)), MaxBytes: s.crew.memory, Threads: s.crew.threads,
	}
	sp, first, err := Space(l, s.spec, p, rep.Parts["train"].Bytes, s.serving(p))
	return sp, first, s.input(err)
}

// Space is the search space of a job and the configuration that a search of it
// starts from. An error names the field of the job.
func Space(l space.Limits, spec job.Spec, p search.Plan, corpus int64, v serving) (*space.Space, space.Config, error) {
	v.widen(&l, corpus)
	if l.MaxParams = spec.Constraints.MaxParams; l.MaxParams > 0 {
		l.MinMatrix = min(l.MinMatrix, l.MaxParams/4)
	}
	if spec.Constraints.MaxMemoryMB > 0 {
		l.MaxBytes = spec.Constraints.MaxMemoryMB << 20
	}
	over := map[string]string{}
	for n, e := range spec.Space {
		over[n] = string(e)
		if n == space.Layers || n == space.Dim {
			l.MinMatrix, l.MaxMatrix = 0, 0 // what the user chose isn't narrowed
		}
	}
	sp, err := space.Decoder(l, over)
	if err == nil {
		sp, err = sp.Forbid(spec.Forbidden...)
	}
	if err != nil {
		return nil, nil, &job.FieldError{Path: "space", Msg: err.Error()}
	}
	if sp, err = v.bound(sp); err != nil {
		return nil, nil, &job.FieldError{Path: "constraints", Msg: err.Error()}
	}
	return sp, defaults(p, sp, corpus, contextFor(p.FinalSeconds, p.Params)), nil
}

// SearchSpace is the space that a job's folder was searched in.
func SearchSpace(dir string, st *journal.State) (*space.Space, error) {
	if st.Plan == nil {
		return nil, fmt.Errorf("%s has not come to its search yet", dir)
	}
	sp, _, err := newSite(dir, st.Spec, &crew{threads: 1}).space(*st.Plan)
	return sp, err
}

// Search implements actors.Work.
func (s *site) Search(p search.Plan, slots int) (*search.Search, error) {
	sp, first, err := s.space(p)
	if err != nil {
		return nil, err
	}
	if len(s.spec.WarmStart) > 0 {
		_, used := search.FitPast(sp, first, s.past)
		s.notice(fmt.Sprintf("warm start: %s", used))
	}
	return newSearch(s.spec, sp, first, s.past, p, slots)
}

// grows tells whether the weights of a configuration's model can be grown into another's.
func grows(child, parent space.Config) bool {
	_, err := glm.NewGrowth(space.Arch(child), space.Arch(parent))
	return err == nil
}

// newSearch is the search of a plan, before anything was tried.
func newSearch(spec job.Spec, sp *space.Space, first space.Config, past []search.Past, p search.Plan, slots int) (*search.Search, error) {
	o := search.Options{Seed: spec.Seed, Architecture: space.IsArchitecture, Past: past, Trials: p.SearchTrials, Startup: min(10, max(3, p.SearchTrials/2))}
	if len(first) > 0 {
		o.Initial = []space.Config{first}
	}
	if spec.Inheriting() && p.Scheduler != "pbt" { // whose members begin alike
		o.Grows = grows
	}
	st, err := search.NewStrategy(spec.SearchStrategy, sp, o)
	if err != nil {
		return nil, err
	}
	p.Scheduler = p.SchedulerFor(len(spec.Goals()))
	sched, err := search.NewScheduler(p)
	if err != nil {
		return nil, err
	}
	out := search.New(st, sched, slots)
	if p.Unit == search.Seconds { // what a trial gets done hangs on the clock already
		out.ByArrival()
	}
	return out, nil
}
