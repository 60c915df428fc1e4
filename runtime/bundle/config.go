package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// configOut is config.json as Write makes it, for transformers 4 and 5.
type configOut struct {
	Architectures     []string       `json:"architectures"`
	AttentionBias     bool           `json:"attention_bias"`
	AttentionDropout  decimal        `json:"attention_dropout"`
	BOS               *int32         `json:"bos_token_id"`
	DType             DType          `json:"dtype"`
	EOS               idList         `json:"eos_token_id"`
	HeadDim           int            `json:"head_dim"`
	HiddenAct         string         `json:"hidden_act"`
	HiddenSize        int            `json:"hidden_size"`
	InitializerRange  decimal        `json:"initializer_range"`
	IntermediateSize  int            `json:"intermediate_size"`
	MaxPosition       int            `json:"max_position_embeddings"`
	MLPBias           bool           `json:"mlp_bias"`
	ModelType         string         `json:"model_type"`
	NumHeads          int            `json:"num_attention_heads"`
	NumLayers         int            `json:"num_hidden_layers"`
	NumKVHeads        int            `json:"num_key_value_heads"`
	Pad               *int32         `json:"pad_token_id"`
	Quantization      *quantization  `json:"quantization_config,omitempty"`
	RMSNormEps        decimal        `json:"rms_norm_eps"`
	RopeParameters    ropeParameters `json:"rope_parameters"` // transformers 5
	RopeTheta         decimal        `json:"rope_theta"`      // transformers 4
	TieWordEmbeddings bool           `json:"tie_word_embeddings"`
	TorchDType        DType          `json:"torch_dtype"` // transformers 4's name of dtype
	UseCache          bool           `json:"use_cache"`
	VocabSize         int            `json:"vocab_size"`
}

type ropeParameters struct {
	RopeTheta decimal `json:"rope_theta"`
	RopeType  string  `json:"rope_type"`
}

// decimal is written with a decimal point or an exponent, so that readers which
// tell integers from floats see a float.
type decimal float64

func (d decimal) MarshalJSON() ([]byte, error) {
	s := strconv.FormatFloat(float64(d), 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return []byte(s), nil
}

func makeConfig(a glm.Arch, g Generation, d DType) configOut {
	return configOut{
		Architectures: []string{"LlamaForCausalLM"}, ModelType: "llama",
		BOS: optionalID(g.BOS), EOS: g.EOS, Pad: optionalID(g.Pad), DType: d, TorchDType: d,
		HeadDim: a.HeadDim(), HiddenAct: "silu", HiddenSize: a.Dim, InitializerRange: 0.02, IntermediateSize: a.FFN,
		MaxPosition: a.Context, NumHeads: a.Heads, NumLayers: a.Layers, NumKVHeads: a.KVHeads, RMSNormEps: decimal(a.NormEps),
		RopeParameters: ropeParameters{RopeTheta: decimal(a.RopeTheta), RopeType: "default"}, RopeTheta: decimal(a.RopeTheta),
		TieWordEmbeddings: a.Tied, UseCache: true, VocabSize: a.Vocab,
	}
}

func optionalID(id int32) *int32 {
	if id < 0 {
		return nil
	}
	return &id
}

// configIn is what Open reads of config.json; what is absent has transformers'
// defaults.
type configIn struct {
	Architectures      []string        `json:"architectures"`
	ModelType          string          `json:"model_type"`
	VocabSize          int             `json:"vocab_size"`
	HiddenSize         int             `json:"hidden_size"`
	IntermediateSize   int             `json:"intermediate_size"`
	NumLayers          int             `json:"num_hidden_layers"`
	NumHeads           int             `json:"num_attention_heads"`
	NumKVHeads         *int            `json:"num_key_value_heads"`
	HeadDim            *int            `json:"head_dim"`
	HiddenAct          *string         `json:"hidden_act"`
	MaxPosition        *int            `json:"max_position_embeddings"`
	RMSNormEps         *float64        `json:"rms_norm_eps"`
	Tie                bool            `json:"tie_word_embeddings"`
	AttentionBias      bool            `json:"attention_bias"`
	MLPBias            bool            `json:"mlp_bias"`
	RopeTheta          *float64        `json:"rope_theta"`
	RopeScaling        *ropeIn         `json:"rope_scaling"`
	RopeParameters     *ropeIn         `json:"rope_parameters"`
	PartialRotary      *float64        `json:"partial_rotary_factor"`
	QuantizationConfig json.RawMessage `json:"quantization_config"`
	BOS                *int32          `json:"bos_token_id"`
	EOS                idList          `json:"eos_token_id"`
	Pad                *int32          `json:"pad_token_id"`
}

type ropeIn struct {
	RopeTheta     *float64 `json:"rope_theta"`
	RopeType      string   `json:"rope_type"`
	Type          string   `json:"type"` // the older name
	PartialRotary *float64 `json:"partial_rotary_factor"`
}

// scaled is the kind of rotary scaling, or "".
func (r *ropeIn) scaled() string {
	if r == nil {
		return ""
	}
	for _, kind := range []string{r.RopeType, r.Type} {
		if kind != "" && kind != "default" {
			return kind
		}
	}
	if r.PartialRotary != nil && *r.PartialRotary != 1 {
		return fmt.Sprintf("partial_rotary_factor %g", *r.PartialRotary)
	}
	return ""
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// parseConfig is the shape in config.json, or the first reason why package glm's
// family can't express it.
func parseConfig(data []byte) (glm.Arch, configIn, error) {
	var c configIn
	if err := json.Unmarshal(data, &c); err != nil {
		return glm.Arch{}, c, err
	}
	a := glm.Arch{
		Vocab: c.VocabSize, Dim: c.HiddenSize, Layers: c.NumLayers, Heads: c.NumHeads, KVHeads: or(c.NumKVHeads, c.NumHeads),
		FFN: c.IntermediateSize, Context: or(c.MaxPosition, 2048), Tied: c.Tie,
		RopeTheta: or(c.RopeTheta, glm.DefaultRopeTheta), NormEps: or(c.RMSNormEps, 1e-6),
	}
	if c.HeadDim != nil {
		if *c.HeadDim <= 0 {
			return a, c, fmt.Errorf("head_dim is %d, must be positive", *c.HeadDim)
		}
		a = a.WithHead(*c.HeadDim)
	}
	if c.RopeParameters != nil { // wins, as in transformers 5
		a.RopeTheta = or(c.RopeParameters.RopeTheta, a.RopeTheta)
	}
	scaling := c.RopeScaling.scaled()
	if scaling == "" {
		scaling = c.RopeParameters.scaled()
	}
	switch {
	case c.ModelType != "llama":
		return a, c, fmt.Errorf("model_type is %q, only llama is known", c.ModelType)
	case len(c.Architectures) > 0 && !slices.Contains(c.Architectures, "LlamaForCausalLM"):
		return a, c, fmt.Errorf("architectures is %s, only LlamaForCausalLM is known", strings.Join(c.Architectures, ", "))
	case c.AttentionBias:
		return a, c, errors.New("attention_bias is true; models with biases are not known")
	case c.MLPBias:
		return a, c, errors.New("mlp_bias is true; models with biases are not known")
	case or(c.HiddenAct, "silu") != "silu":
		return a, c, fmt.Errorf("hidden_act is %q, only silu is known", *c.HiddenAct)
	case scaling != "":
		return a, c, fmt.Errorf("rotary embedding is scaled (%s); only the default is known", scaling)
	case or(c.PartialRotary, 1) != 1:
		return a, c, fmt.Errorf("partial_rotary_factor is %g, must be 1", *c.PartialRotary)
	}
	if len(c.QuantizationConfig) > 0 && string(c.QuantizationConfig) != "null" {
		if err := checkQuantization(c.QuantizationConfig); err != nil {
			return a, c, err
		}
	}
	if err := a.Validate(); err != nil {
		return a, c, err
	}
	return a, c, nil
}

// idList is one token id or several; Hugging Face writes one without a list.
type idList []int32

func (l idList) MarshalJSON() ([]byte, error) {
	switch len(l) {
	case 0:
		return []byte("null"), nil
	case 1:
		return json.Marshal(l[0])
	}
	return json.Marshal([]int32(l))
}

func (l *idList) UnmarshalJSON(data []byte) error {
	var one *int32
	if json.Unmarshal(data, &one) == nil {
		*l = nil
		if one != nil {
			*l = idList{*one}
		}
		return nil
	}
	return json.Unmarshal(data, (*[]int32)(l))
}
