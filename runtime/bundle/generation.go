package bundle

import (
	"encoding/json"
	"fmt"

	"github.com/open-autoglm/autoglm/runtime/token"
)

// Generation is how the model is meant to be sampled: generation_config.json.
type Generation struct {
	BOS int32   // -1 is none
	EOS []int32 // any of them ends the text
	Pad int32   // -1 is none

	// With Sample false the likeliest token is taken and the rest is not used.
	Sample            bool
	Temperature       float64 // 1 leaves the distribution as it is
	TopK              int     // 0 is off
	TopP              float64 // 1 is off
	MinP              float64 // 0 is off
	RepetitionPenalty float64 // 1 is off; works without Sample too
	MaxNewTokens      int     // 0 leaves it to the caller
}

// DefaultGeneration is for tokenizers that token.Trainer made.
func DefaultGeneration() Generation {
	return Generation{BOS: token.BOSID, EOS: []int32{token.EndOfTextID}, Pad: token.PadID, Sample: true, Temperature: 0.8, TopK: 50, TopP: 0.95, RepetitionPenalty: 1}
}

func (g Generation) validate(vocab int) error {
	ids := append([]int32{g.BOS, g.Pad}, g.EOS...)
	for i, id := range ids {
		if int(id) >= vocab || id < -1 || i > 1 && id < 0 {
			return fmt.Errorf("generation: token id %d is not in a vocabulary of %d", id, vocab)
		}
	}
	switch {
	case g.Temperature < 0 || g.Sample && g.Temperature == 0:
		return fmt.Errorf("generation: temperature is %g, must be positive", g.Temperature)
	case g.TopK < 0:
		return fmt.Errorf("generation: top_k is %d, must not be negative", g.TopK)
	case g.TopP < 0 || g.TopP > 1:
		return fmt.Errorf("generation: top_p is %g, must be in 0 to 1", g.TopP)
	case g.MinP < 0 || g.MinP > 1:
		return fmt.Errorf("generation: min_p is %g, must be in 0 to 1", g.MinP)
	case g.RepetitionPenalty < 0:
		return fmt.Errorf("generation: repetition_penalty is %g, must be positive", g.RepetitionPenalty)
	case g.MaxNewTokens < 0:
		return fmt.Errorf("generation: max_new_tokens is %d, must not be negative", g.MaxNewTokens)
	}
	return nil
}

type generationJSON struct {
	BOS               *int32   `json:"bos_token_id,omitempty"`
	Sample            bool     `json:"do_sample"`
	EOS               idList   `json:"eos_token_id"`
	MaxNewTokens      int      `json:"max_new_tokens,omitempty"`
	MinP              *float64 `json:"min_p,omitempty"`
	Pad               *int32   `json:"pad_token_id,omitempty"`
	RepetitionPenalty *float64 `json:"repetition_penalty,omitempty"`
	Temperature       *float64 `json:"temperature,omitempty"`
	TopK              *int     `json:"top_k,omitempty"`
	TopP              *float64 `json:"top_p,omitempty"`
}

func makeGeneration(g Generation) generationJSON {
	out := generationJSON{BOS: optionalID(g.BOS), EOS: g.EOS, Pad: optionalID(g.Pad), Sample: g.Sample, MaxNewTokens: g.MaxNewTokens}
	if g.RepetitionPenalty > 0 && g.RepetitionPenalty != 1 {
		out.RepetitionPenalty = &g.RepetitionPenalty
	}
	if g.Sample {
		out.Temperature, out.TopK, out.TopP = &g.Temperature, &g.TopK, &g.TopP
		if g.MinP > 0 {
			out.MinP = &g.MinP
		}
	}
	return out
}

// parseGeneration reads generation_config.json; data may be nil, then the ids of
// config.json count and the rest is greedy.
func parseGeneration(data []byte, c configIn) (Generation, error) {
	j := generationJSON{BOS: c.BOS, EOS: c.EOS, Pad: c.Pad}
	if data != nil {
		if err := json.Unmarshal(data, &j); err != nil {
			return Generation{}, err
		}
	}
	return Generation{
		BOS: or(j.BOS, -1), EOS: j.EOS, Pad: or(j.Pad, -1), Sample: j.Sample, MaxNewTokens: j.MaxNewTokens,
		Temperature: or(j.Temperature, 1), TopK: or(j.TopK, 0), TopP: or(j.TopP, 1), MinP: or(j.MinP, 0),
		RepetitionPenalty: or(j.RepetitionPenalty, 1),
	}, nil
}
