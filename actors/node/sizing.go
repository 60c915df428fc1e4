package node

import (
	"context"
	"errors"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Which model the final training trains: the winner, or one that it is grown into.

const (
	// growMost is how much larger than the winner a model may be, unless a trial was as
	// large: what a law says of others is a guess.
	growMost = 4
	// growShape is how far its width over its depth may be from the winner's, a factor:
	// the law knows sizes alone.
	growShape = 2
)

// Size implements actors.Work.
func (s *site) Size(ctx context.Context, st journal.State, winner string) (*search.Sizing, error) {
	if !s.spec.GrowsFinal() {
		return nil, nil
	}
	begin := time.Now()
	if err := s.folder.Pull(ctx); err != nil { // the winner may have been trained elsewhere
		return nil, err
	}
	start := begun(st, winner)
	at, err := train.CheckpointState(s.path("trials", winner, "checkpoint"))
	if err != nil {
		return nil, err
	}
	texts := map[int]float64{} // bytes of a token, by vocabulary
	var unique float64
	for _, d := range st.Decisions {
		v := d.Config.Int(space.Vocab)
		if _, has := texts[v]; has {
			continue
		}
		if err := s.ensure(ctx, v, false); err != nil {
			return nil, err
		}
		c, err := train.OpenCorpus(s.corpus(v, "train"))
		if err != nil {
			return nil, err
		}
		unique = float64(c.Bytes())
		texts[v] = unique / float64(max(c.Tokens(), 1))
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	points, head := lawPoints(st, texts, unique)
	laws, ok := search.FitLaw(points, s.spec.Seed)
	if !ok {
		return nil, nil
	}
	w := search.Standing{Read: head[winner] + float64(at.Tokens)*texts[start.Config.Int(space.Vocab)], Unique: unique}
	for _, d := range st.Decisions {
		if o := st.Outcomes[d.Seq]; d.Trial == winner && !o.Failed && o.Bits > 0 {
			w.Score, w.Scored = o.Bits, head[winner]+float64(o.State.Tokens)*texts[d.Config.Int(space.Vocab)]
		}
	}
	largest := int64(0)
	for _, p := range points {
		largest = max(largest, int64(p.Params))
	}
	configs, err := s.heirs(*st.Plan, start.Config, largest)
	if err != nil {
		return nil, err
	}
	tokens, err := s.tokensLeft(ctx, st, begin)
	if err != nil {
		return nil, err
	}
	var heirs []search.Heir
	for _, c := range configs {
		heirs = append(heirs, search.Heir{
			Config: c, Params: space.Arch(c).MatrixParams(), Text: tokens(configOf(s.spec, *st.Plan, c)) * texts[c.Int(space.Vocab)],
		})
	}
	z := laws.Choose(w, heirs)
	return &z, nil
}

// lawPoints are the scores of a search: at the end of each rung, and on the way there. A
// trial that began from another's weights has read what that one had read, its head.
func lawPoints(st journal.State, texts map[int]float64, unique float64) (out []search.LawPoint, head map[string]float64) {
	head = map[string]float64{}
	saved := map[string]float64{} // what a trial had read at its last checkpoint
	for _, d := range st.Decisions {
		switch d.Action {
		case search.Start:
			head[d.Trial] = saved[d.Inherit]
		case search.Fork: // which counts on from its parent's tokens
			head[d.Trial] = head[d.Inherit]
		}
		o, ended := st.Outcomes[d.Seq]
		if !ended || o.Failed {
			continue
		}
		reached, flat := d.Resource, 1-st.Plan.CoolOf(d)
		curve := o.State.Curve
		if o.Stopped != "" {
			if len(curve) == 0 {
				continue
			}
			reached, flat = curve[len(curve)-1].Resource, 1
		}
		read := float64(o.State.Tokens) * texts[d.Config.Int(space.Vocab)]
		p := search.LawPoint{Trial: d.Trial, Params: float64(space.Arch(d.Config).MatrixParams())}
		for _, c := range curve {
			if c.Resource > d.From { // others came with the rung before
				p.Warm, p.Score, p.Text = true, c.Score, search.Effective(head[d.Trial]+read*c.Resource/reached, unique)
				out = append(out, p)
			}
		}
		if o.Stopped == "" {
			p.Warm, p.Score, p.Text = false, o.Bits, search.Effective(head[d.Trial]+read, unique)
			out = append(out, p)
		}
		saved[d.Trial] = head[d.Trial] + flat*read
	}
	return out, head
}

// heirs are the winner's configuration and those of larger models, within all that the
// job says of models, that its weights can be grown into; largest is what the largest
// trial has in matrices.
func (s *site) heirs(p search.Plan, winner space.Config, largest int64) ([]space.Config, error) {
	from := space.Arch(winner)
	out := []space.Config{winner}
	most := max(growMost*from.MatrixParams(), largest)
	if p.Unit == search.Tokens { // whose final training takes longer the larger the model is
		most = p.MaxParams
	}
	p.MinParams, p.MaxParams = 0, most
	sp, _, err := s.space(p)
	if err != nil {
		return nil, err
	}
	bounds := s.serving(p)
	dims, _ := sp.Dimension(space.Dim)
	for dim := from.Dim; int64(dim)*int64(dim) <= most; dim += 64 { // a layer alone has more
		if !dims.Has(space.Number(float64(dim))) || dim%from.HeadDim() != 0 {
			continue
		}
		for layers := from.Layers; int64(layers)*int64(dim)*int64(dim) <= most; layers++ {
			c := winner.Clone()
			heads := dim / from.HeadDim()
			c[space.Dim], c[space.Layers] = space.Number(float64(dim)), space.Number(float64(layers))
			c[space.Heads], c[space.KVHeads] = space.Number(float64(heads)), space.Number(float64(heads*from.KVHeads/from.Heads))
			a := space.Arch(c)
			if a == from || a.MatrixParams() > most || shapesApart(a, from) || sp.Check(c) != nil || !grows(c, winner) {
				continue
			}
			holds := true
			cost := bounds.foretold(a)
			for _, b := range s.spec.Bounds() {
				holds = holds && b.Over(cost) <= 0
			}
			if holds {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// shapesApart tells whether one is much wider for its depth than the other.
func shapesApart(a, b glm.Arch) bool {
	x := float64(a.Dim*b.Layers) / float64(a.Layers*b.Dim)
	return x > growShape || x < 1.0/growShape
}

// tokensLeft tells how many tokens what is left of the budget trains a model on, were it
// begun now.
func (s *site) tokensLeft(ctx context.Context, st journal.State, begin time.Time) (func(train.Config) float64, error) {
	p := *st.Plan
	if p.Unit != search.Seconds {
		return func(c train.Config) float64 {
			return segment(p, c, train.State{}, p.FinalResource, p.FinalDecay).End() * float64(c.Sequences()*c.Arch.Context)
		}, nil
	}
	left := func() float64 {
		return max(1, st.Spec.Budget.WallClock.D().Seconds()-st.Active-p.Reserve-time.Since(begin).Seconds())
	}
	pacer, err := s.crew.pacer(ctx, engine.Precision(s.spec.Precision), min(0.5, 0.005*left()))
	if err != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	seconds := left()
	return func(c train.Config) float64 { return seconds * pacer.pace(c, len(s.crew.devices)).Tokens }, nil
}
