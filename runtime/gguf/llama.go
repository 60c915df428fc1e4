package gguf

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Options of a file.
type Options struct {
	Type    Type
	Name    string // general.name
	License string // general.license; "" leaves it out
}

// Keys that are both written and read.
const (
	keyArchitecture = "general.architecture"
	keyVocab        = "llama.vocab_size"
	keyContext      = "llama.context_length"
	keyDim          = "llama.embedding_length"
	keyLayers       = "llama.block_count"
	keyFFN          = "llama.feed_forward_length"
	keyRope         = "llama.rope.dimension_count"
	keyRopeBase     = "llama.rope.freq_base"
	keyHeads        = "llama.attention.head_count"
	keyKVHeads      = "llama.attention.head_count_kv"
	keyEps          = "llama.attention.layer_norm_rms_epsilon"
	keyKeyLen       = "llama.attention.key_length"
	keyValueLen     = "llama.attention.value_length"
	keyModel        = "tokenizer.ggml.model"
	keyPre          = "tokenizer.ggml.pre"
	keyTokens       = "tokenizer.ggml.tokens"
	keyTypes        = "tokenizer.ggml.token_type"
	keyMerges       = "tokenizer.ggml.merges"
	keyBOS          = "tokenizer.ggml.bos_token_id"
	keyEOS          = "tokenizer.ggml.eos_token_id"
	keyEOT          = "tokenizer.ggml.eot_token_id"
	keyPad          = "tokenizer.ggml.padding_token_id"
	keyAddBOS       = "tokenizer.ggml.add_bos_token"
	keyAddEOS       = "tokenizer.ggml.add_eos_token"
	keyTemplate     = "tokenizer.chat_template"
)

// Types of tokens, as llama.cpp numbers them.
const (
	tokenNormal  int32 = 1
	tokenControl int32 = 3
	tokenUser    int32 = 4
	tokenUnused  int32 = 5
)

// What llama.cpp calls the two split expressions. "llama-bpe" takes a piece that is in
// the vocabulary whole, whatever the merges say; "gpt-2" doesn't.
const (
	preLlama3 = "llama-bpe"
	preGPT2   = "gpt-2"
)

// FromBundle is the file of a bundle. Its notes say which tensors could not have the
// type that was asked for.
func FromBundle(b *bundle.Bundle, o Options) (*File, []string, error) {
	if err := b.Validate(); err != nil {
		return nil, nil, err
	}
	if typeInfos[o.Type].values == 0 {
		return nil, nil, fmt.Errorf("%s is not known", o.Type)
	}
	vocabulary, err := tokenizerKVs(b)
	if err != nil {
		return nil, nil, err
	}
	f := &File{KVs: append(archKVs(b.Arch, o), vocabulary...)}
	layout, _ := b.Arch.Layout()
	var notes []string
	for i, p := range layout {
		data := b.Params[i].Floats()
		name := tensorName(p.Name)
		if heads := rotated(b.Arch, p.Name); heads > 0 {
			data = interleave(data, heads, b.Arch.Dim)
		}
		t := typeOf(p, o.Type, b.Arch.Tied)
		if row := p.Shape[len(p.Shape)-1]; row%typeInfos[t].values != 0 {
			notes = append(notes, fmt.Sprintf("%s is F16: its rows of %d are no whole number of blocks of %d", name, row, blockLen))
			t = F16
		}
		f.Tensors = append(f.Tensors, Tensor{Name: name, Shape: p.Shape, Type: t, Data: data})
	}
	return f, notes, nil
}

// typeOf is the type that a parameter has in a file of type t.
func typeOf(p glm.Param, t Type, tied bool) Type {
	switch {
	case p.Role == glm.Norm:
		return F32
	case t == Q4_0 && (p.Role == glm.Head || p.Role == glm.Embedding && tied):
		return Q8_0
	}
	return t
}

func archKVs(a glm.Arch, o Options) []KV {
	u := func(n int) uint32 { return uint32(n) }
	kvs := []KV{{keyArchitecture, "llama"}, {"general.type", "model"}, {"general.name", o.Name}}
	if o.License != "" {
		kvs = append(kvs, KV{"general.license", o.License})
	}
	return append(kvs, []KV{
		{"general.file_type", typeInfos[o.Type].fileType},
		{"general.quantization_version", uint32(2)},
		{keyVocab, u(a.Vocab)},
		{keyContext, u(a.Context)},
		{keyDim, u(a.Dim)},
		{keyLayers, u(a.Layers)},
		{keyFFN, u(a.FFN)},
		{keyRope, u(a.HeadDim())},
		{keyRopeBase, float32(a.RopeTheta)},
		{keyHeads, u(a.Heads)},
		{keyKVHeads, u(a.KVHeads)},
		{keyEps, float32(a.NormEps)},
		{keyKeyLen, u(a.HeadDim())},
		{keyValueLen, u(a.HeadDim())},
	}...)
}

// tokenizerKVs is the vocabulary with a row for each of the model's, and what frames text.
func tokenizerKVs(b *bundle.Bundle) ([]KV, error) {
	parts := b.Tokenizer.Parts()
	pre := preLlama3
	if parts.Split == token.SplitGPT2 {
		pre = preGPT2
	}
	if parts.IgnoreMerges != (pre == preLlama3) {
		return nil, fmt.Errorf("tokenizer: ignore_merges is %t, but llama.cpp's %q, which splits text as this tokenizer does, knows only %t: ids would differ", parts.IgnoreMerges, pre, pre == preLlama3)
	}
	tokens, types := make([]string, b.Arch.Vocab), make([]int32, b.Arch.Vocab)
	for id := range tokens {
		tokens[id], types[id] = fmt.Sprintf("[PAD%d]", id), tokenUnused
		if id < len(parts.Pieces) {
			switch p := parts.Pieces[id]; p.Kind {
			case token.Normal:
				tokens[id], types[id] = p.Text, tokenNormal
			case token.Special:
				tokens[id], types[id] = p.Text, tokenControl
			case token.Added:
				tokens[id], types[id] = p.Text, tokenUser
			}
		}
	}
	merges := make([]string, len(parts.Merges))
	for i, m := range parts.Merges {
		merges[i] = m[0] + " " + m[1]
	}
	kvs := []KV{{keyModel, "gpt2"}, {keyPre, pre}, {keyTokens, tokens}, {keyTypes, types}, {keyMerges, merges}}
	bos := parts.BOS
	if bos < 0 {
		bos = b.Generation.BOS
	}
	id := func(key string, id int32) {
		if id >= 0 {
			kvs = append(kvs, KV{key, uint32(id)})
		}
	}
	id(keyBOS, bos)
	if eos := b.Generation.EOS; len(eos) > 0 { // the second ends a turn where there are several
		id(keyEOS, eos[0])
		id(keyEOT, eos[min(1, len(eos)-1)])
	}
	id(keyPad, b.Generation.Pad)
	kvs = append(kvs, KV{keyAddBOS, parts.BOS >= 0}, KV{keyAddEOS, false})
	if b.ChatTemplate != "" {
		kvs = append(kvs, KV{keyTemplate, b.ChatTemplate})
	}
	return kvs, nil
}

var partNames = strings.NewReplacer(
	"model.embed_tokens", "token_embd", "model.norm", "output_norm", "lm_head", "output", "model.layers", "blk",
	"input_layernorm", "attn_norm", "post_attention_layernorm", "ffn_norm",
	"self_attn.q_proj", "attn_q", "self_attn.k_proj", "attn_k", "self_attn.v_proj", "attn_v", "self_attn.o_proj", "attn_output",
	"mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down",
)

// tensorName is llama.cpp's name of a parameter.
func tensorName(param string) string { return partNames.Replace(param) }

var attention = regexp.MustCompile(`self_attn\.([qk])_proj`)

// rotated is the number of heads of a parameter whose rows rotate, 0 for others.
func rotated(a glm.Arch, param string) int {
	switch m := attention.FindStringSubmatch(param); {
	case m == nil:
		return 0
	case m[1] == "q":
		return a.Heads
	}
	return a.KVHeads
}

// interleave puts the halves of each head's rows side by side: row 2i+j of a head is its
// row j·D/2+i.
func interleave(data []float32, heads, cols int) []float32 {
	return rearrange(data, heads, cols, func(pair, half int) (to, from int) { return pair, half })
}

// separate undoes interleave.
func separate(data []float32, heads, cols int) []float32 {
	return rearrange(data, heads, cols, func(pair, half int) (to, from int) { return half, pair })
}

// rearrange copies the rows of each head; of tells for each row, by its place in pairs and
// in halves, to where it goes and from where.
func rearrange(data []float32, heads, cols int, of func(pair, half int) (to, from int)) []float32 {
	out := make([]float32, len(data))
	rows := len(data) / cols / heads
	for h := range heads {
		for i := range rows / 2 {
			for j := range 2 {
				to, from := of(h*rows+2*i+j, h*rows+j*rows/2+i)
				copy(out[to*cols:(to+1)*cols], data[from*cols:(from+1)*cols])
			}
		}
	}
	return out
}
