package serve

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Sampling is how the next token is chosen from the logits. Zero values switch a
// filter off; a zero temperature takes the likeliest token.
type Sampling struct {
	Temperature       float64           // divides the logits; 0 is greedy
	TopK              int               // keep the k likeliest (and those equal to the last)
	TopP              float64           // keep the likeliest whose sum reaches p (Holtzman et al. 2020); 0 and 1 are off
	MinP              float64           // keep those with at least this share of the likeliest's probability
	RepetitionPenalty float64           // divides the positive logits of tokens seen, multiplies negative ones (Keskar et al. 2019); 0 and 1 are off
	FrequencyPenalty  float64           // taken from a logit for each time that its token was chosen; negative ones encourage it
	PresencePenalty   float64           // taken from a logit once its token was chosen
	Bias              map[int32]float64 // added to logits before all else
	Seed              uint64
}

// Validate reports the first field that can't be.
func (s Sampling) Validate() error {
	bad := func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) || v < 0 }
	switch {
	case bad(s.Temperature):
		return fmt.Errorf("temperature is %g, must be 0 or more", s.Temperature)
	case s.TopK < 0:
		return fmt.Errorf("top-k is %d, must be 0 (off) or more", s.TopK)
	case bad(s.TopP) || s.TopP > 1:
		return fmt.Errorf("top-p is %g, must be in 0 to 1", s.TopP)
	case bad(s.MinP) || s.MinP > 1:
		return fmt.Errorf("min-p is %g, must be in 0 to 1", s.MinP)
	case bad(s.RepetitionPenalty):
		return fmt.Errorf("repetition penalty is %g, must be 0 (off) or more", s.RepetitionPenalty)
	case bad(math.Abs(s.FrequencyPenalty)):
		return fmt.Errorf("frequency penalty is %g, must be a number", s.FrequencyPenalty)
	case bad(math.Abs(s.PresencePenalty)):
		return fmt.Errorf("presence penalty is %g, must be a number", s.PresencePenalty)
	}
	for id, v := range s.Bias {
		if bad(math.Abs(v)) {
			return fmt.Errorf("the bias of token %d is %g, must be a number", id, v)
		}
	}
	return nil
}

// errLogits is a model that computes nonsense.
var errLogits = errors.New("the model's logits are not numbers: its weights are damaged")

// Sampler draws tokens. It belongs to one goroutine.
type Sampler struct {
	cfg   Sampling
	rng   *rand.Rand
	seen  map[int32]int // how often each token was chosen; 0 is one of the prompt's alone
	cands []candidate
}

type candidate struct {
	id   int32
	v    float64 // logit, later probability (not normalised)
	rank float64 // the logit, for order
}

// NewSampler is a Sampler at the start of its random stream.
func NewSampler(cfg Sampling) (*Sampler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Sampler{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x9e3779b97f4a7c15)), seen: map[int32]int{}}, nil
}

// Saw tells the repetition penalty of tokens that are in the text.
func (s *Sampler) Saw(ids ...int32) {
	for _, id := range ids {
		s.seen[id] += 0
	}
}

// Next chooses a token by logits, [V]; they are not changed. The choice counts as seen.
func (s *Sampler) Next(logits []float32) (int32, error) {
	cands, err := s.filter(logits)
	if err != nil {
		return 0, err
	}
	id := cands[0].id
	if len(cands) > 1 {
		sum := 0.0
		for _, c := range cands {
			sum += c.v
		}
		u := s.rng.Float64() * sum
		for _, c := range cands {
			id = c.id
			if u -= c.v; u < 0 {
				break
			}
		}
	}
	s.seen[id]++
	return id, nil
}

// filter is the tokens that are left, with their unnormalised probabilities;
// just the likeliest when the temperature is 0.
func (s *Sampler) filter(logits []float32) ([]candidate, error) {
	c := s.cands[:0]
	for id, v := range logits {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 1) {
			return nil, errLogits
		}
		if !math.IsInf(float64(v), -1) {
			c = append(c, candidate{id: int32(id), v: float64(v)})
		}
	}
	s.cands = c
	if len(c) == 0 {
		return nil, errLogits
	}
	if len(s.cfg.Bias) > 0 {
		for i := range c {
			c[i].v += s.cfg.Bias[c[i].id]
		}
	}
	if s.cfg.FrequencyPenalty != 0 || s.cfg.PresencePenalty != 0 {
		for i := range c {
			if n := s.seen[c[i].id]; n > 0 {
				c[i].v -= s.cfg.FrequencyPenalty*float64(n) + s.cfg.PresencePenalty
			}
		}
	}
	if p := s.cfg.RepetitionPenalty; p != 0 && p != 1 {
		for i := range c {
			if _, ok := s.seen[c[i].id]; !ok {
				continue
			}
			if c[i].v < 0 {
				c[i].v *= p
			} else {
				c[i].v /= p
			}
		}
	}
	best := 0
	for i := range c {
		if c[i].v > c[best].v {
			best = i
		}
	}
	if s.cfg.Temperature == 0 {
		c[0] = c[best]
		return c[:1], nil
	}
	if k := s.cfg.TopK; k > 0 && k < len(c) {
		c = topK(c, k)
	}
	highest := math.Inf(-1)
	for i := range c {
		highest = max(highest, c[i].v)
	}
	sum := 0.0
	for i := range c {
		c[i].rank = c[i].v
		c[i].v = math.Exp((c[i].v - highest) / s.cfg.Temperature)
		sum += c[i].v
	}
	if p := s.cfg.TopP; p > 0 && p < 1 {
		c = topP(c, p*sum)
	}
	if p := s.cfg.MinP; p > 0 {
		c = slices.DeleteFunc(c, func(x candidate) bool { return x.v < p }) // the likeliest has 1
	}
	return c, nil
}

// topK keeps the k largest and those equal to the smallest of them, in the order
// of ids.
func topK(c []candidate, k int) []candidate {
	v := make([]float64, len(c))
	for i := range c {
		v[i] = c[i].v
	}
	least := kthLargest(v, k)
	return slices.DeleteFunc(c, func(x candidate) bool { return x.v < least })
}

// kthLargest selects by Hoare's partition; v is rearranged.
func kthLargest(v []float64, k int) float64 {
	lo, hi, at := 0, len(v)-1, k-1
	for lo < hi {
		pivot := v[lo+(hi-lo)/2]
		i, j := lo, hi
		for i <= j {
			for v[i] > pivot {
				i++
			}
			for v[j] < pivot {
				j--
			}
			if i <= j {
				v[i], v[j] = v[j], v[i]
				i++
				j--
			}
		}
		switch {
		case at <= j:
			hi = j
		case at >= i:
			lo = i
		default:
			return v[at]
		}
	}
	return v[at]
}

// topP keeps the likeliest candidates until their sum reaches mass, at least one.
func topP(c []candidate, mass float64) []candidate {
	slices.SortFunc(c, func(a, b candidate) int {
		if d := cmp.Compare(b.rank, a.rank); d != 0 {
			return d
		}
		return cmp.Compare(a.id, b.id)
	})
	before := 0.0
	for i := range c {
		if i > 0 && before >= mass {
			return c[:i]
		}
		before += c[i].v
	}
	return c
}
