package glm

import "fmt"

// Role says what a parameter is to the optimiser and to initialisation.
type Role uint8

// Roles of parameters.
const (
	Embedding Role = iota // [V, C]: gathered by token; the output projection too when tied
	Matrix                // [out, in]: y = x·Wᵀ; weight decay applies, Muon may own it
	Residual              // a Matrix that writes into the residual stream (o_proj, down_proj)
	Norm                  // [C]: RMSNorm's gain; never decayed
	Head                  // [V, C]: the untied output projection
)

// Param is one named parameter inside the arena: Elems values from Offset on,
// row-major.
type Param struct {
	Name   string // Hugging Face's name
	Shape  []int
	Role   Role
	Offset int
	Elems  int
}

// Layout lists the parameters in arena order: embedding, then each layer, then
// the final norm, then the head when it is untied. Offsets are in elements, each
// aligned to 16 (64 bytes of float32); size is the arena's length.
func (a Arch) Layout() (params []Param, size int) {
	add := func(role Role, name string, shape ...int) {
		n := 1
		for _, s := range shape {
			n *= s
		}
		params = append(params, Param{Name: name, Shape: shape, Role: role, Offset: size, Elems: n})
		size = (size + n + 15) &^ 15
	}
	c, q, kv, f := a.Dim, a.QueryDim(), a.KVDim(), a.FFN
	add(Embedding, "model.embed_tokens.weight", a.Vocab, c)
	for l := range a.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(Norm, p+"input_layernorm.weight", c)
		add(Matrix, p+"self_attn.q_proj.weight", q, c)
		add(Matrix, p+"self_attn.k_proj.weight", kv, c)
		add(Matrix, p+"self_attn.v_proj.weight", kv, c)
		add(Residual, p+"self_attn.o_proj.weight", c, q)
		add(Norm, p+"post_attention_layernorm.weight", c)
		add(Matrix, p+"mlp.gate_proj.weight", f, c)
		add(Matrix, p+"mlp.up_proj.weight", f, c)
		add(Residual, p+"mlp.down_proj.weight", c, f)
	}
	add(Norm, "model.norm.weight", c)
	if !a.Tied {
		add(Head, "lm_head.weight", a.Vocab, c)
	}
	return params, size
}
