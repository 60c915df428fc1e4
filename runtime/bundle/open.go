package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Open reads a bundle, ours or a Llama that transformers saved, whole into
// memory; weights of 8 and 4 bits stay so. Params come in the order of Arch.Layout. The
// Card is that of card.json; where there is none, the text of README.md is kept as it is.
func Open(dir string) (*Bundle, error) {
	b, err := open(dir, readFile)
	if err != nil {
		return nil, fmt.Errorf("open bundle %s: %w", dir, err)
	}
	return b, nil
}

// opener gives a file of weights.
type opener func(dir, name string) (tensors, error)

func open(dir string, file opener) (*Bundle, error) {
	data, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: not a bundle (a build writes it to OUT/bundle)", ConfigFile)
	}
	if err != nil {
		return nil, err
	}
	b := &Bundle{}
	var c configIn
	if b.Arch, c, err = parseConfig(data); err != nil {
		return nil, fmt.Errorf("%s: %w", ConfigFile, err)
	}
	if data, err = optional(dir, GenerationFile); err != nil {
		return nil, err
	}
	if b.Generation, err = parseGeneration(data, c); err != nil {
		return nil, fmt.Errorf("%s: %w", GenerationFile, err)
	}
	if data, err = os.ReadFile(filepath.Join(dir, TokenizerFile)); err != nil {
		return nil, err
	}
	if b.Tokenizer, err = token.Parse(data); err != nil {
		return nil, err
	}
	if b.ChatTemplate, err = chatTemplate(dir); err != nil {
		return nil, err
	}
	if data, err = optional(dir, EvalFile); err != nil {
		return nil, err
	}
	b.Eval = data
	if err := b.readCard(dir); err != nil {
		return nil, err
	}
	if err := b.Validate(); err != nil {
		return nil, err
	}
	tensors, err := readWeights(dir, file)
	if err != nil {
		return nil, err
	}
	if b.Params, err = arrange(b.Arch, tensors); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Bundle) readCard(dir string) error {
	data, err := optional(dir, CardDataFile)
	if err != nil {
		return err
	}
	if data != nil {
		if err := json.Unmarshal(data, &b.Card); err != nil {
			return fmt.Errorf("%s: %w", CardDataFile, err)
		}
		return nil
	}
	data, err = optional(dir, CardFile)
	b.Readme = string(data)
	return err
}

// optional is a file's content, nil when there is none.
func optional(dir, name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// chatTemplate looks for the template's own file, then in tokenizer_config.json.
func chatTemplate(dir string) (string, error) {
	data, err := optional(dir, ChatTemplateFile)
	if err != nil || data != nil {
		return string(data), err
	}
	if data, err = optional(dir, TokenizerConfigFile); err != nil || data == nil {
		return "", err
	}
	var c struct {
		ChatTemplate json.RawMessage `json:"chat_template"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return "", fmt.Errorf("%s: %w", TokenizerConfigFile, err)
	}
	if len(c.ChatTemplate) == 0 || string(c.ChatTemplate) == "null" {
		return "", nil
	}
	var one string
	if json.Unmarshal(c.ChatTemplate, &one) == nil {
		return one, nil
	}
	var several []struct{ Name, Template string }
	if err := json.Unmarshal(c.ChatTemplate, &several); err != nil {
		return "", fmt.Errorf("%s: chat_template is neither a string nor a list of named ones", TokenizerConfigFile)
	}
	for _, t := range several {
		if t.Name == "default" {
			return t.Template, nil
		}
	}
	return "", nil
}

// readWeights reads model.safetensors, or the shards that its index names.
func readWeights(dir string, file opener) (engine.StateDict, error) {
	index, err := optional(dir, WeightsIndexFile)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, WeightsFile)); err == nil || index == nil {
		return readWeightsFile(dir, WeightsFile, file)
	}
	var f struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(index, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", WeightsIndexFile, err)
	}
	names := slices.Compact(slices.Sorted(maps.Values(f.WeightMap)))
	var all engine.StateDict
	for _, name := range names {
		if name != filepath.Base(name) || !strings.HasSuffix(name, ".safetensors") {
			return nil, fmt.Errorf("%s: %q is not the name of a shard in this folder", WeightsIndexFile, name)
		}
		part, err := readWeightsFile(dir, name, file)
		if err != nil {
			return nil, err
		}
		for _, t := range part {
			if f.WeightMap[t.Name] != name {
				return nil, fmt.Errorf("%s holds tensor %q, which the index puts into %q", name, t.Name, f.WeightMap[t.Name])
			}
		}
		all = append(all, part...)
	}
	return all, nil
}

func readWeightsFile(dir, name string, file opener) (engine.StateDict, error) {
	f, err := file(dir, name)
	if err != nil {
		return nil, err
	}
	if f.Closer != nil {
		defer func() { _ = f.Close() }()
	}
	out, err := f.read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// readFile opens a file of weights to be read.
func readFile(dir, name string) (tensors, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return tensors{}, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return tensors{}, err
	}
	return tensors{ReaderAt: f, Closer: f, size: info.Size()}, nil
}

const headName = "lm_head.weight"

// arrange puts the parameters into the layout's order, and refuses a missing,
// unexpected, misshapen or non-finite one. Optimiser state is left out; so are
// the rotary frequencies that old checkpoints hold, and a tied model's copy of
// its embedding.
func arrange(a glm.Arch, tensors engine.StateDict) (engine.StateDict, error) {
	byName := make(map[string]engine.Tensor, len(tensors))
	for _, t := range tensors {
		if strings.HasPrefix(t.Name, "optimizer.") || strings.HasSuffix(t.Name, ".rotary_emb.inv_freq") {
			continue
		}
		if _, ok := byName[t.Name]; ok {
			return nil, fmt.Errorf("tensor %q stands twice", t.Name)
		}
		byName[t.Name] = t
	}
	layout, _ := a.Layout()
	out := make(engine.StateDict, 0, len(layout))
	for _, p := range layout {
		t, ok := byName[p.Name]
		if !ok {
			return nil, fmt.Errorf("tensor %q %v is missing", p.Name, p.Shape)
		}
		if t.Blocks != nil {
			if err := t.Blocks.Validate(); err != nil {
				return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
			}
		}
		if !slices.Equal(t.Shape, p.Shape) || t.Blocks == nil && len(t.Data) != p.Elems {
			return nil, fmt.Errorf("tensor %q has shape %v (%d values), the config needs %v", p.Name, t.Shape, len(t.Data), p.Shape)
		}
		for i, v := range t.Data {
			if v-v != 0 { // of what is not finite that is NaN
				return nil, fmt.Errorf("tensor %q is %g at %d: the weights are damaged or training diverged", p.Name, v, i)
			}
		}
		delete(byName, p.Name)
		out = append(out, t)
	}
	if t, ok := byName[headName]; ok && a.Tied {
		if !sameValues(t, out[0]) {
			return nil, fmt.Errorf("tie_word_embeddings is true, but %q differs from the embedding", headName)
		}
		delete(byName, headName)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		return nil, fmt.Errorf("tensor %q %v is not part of the model that the config describes", name, byName[name].Shape)
	}
	return out, nil
}

func sameValues(t, u engine.Tensor) bool {
	if t.Blocks == nil || u.Blocks == nil {
		return t.Blocks == u.Blocks && slices.Equal(t.Data, u.Data)
	}
	return t.Blocks.Bits == u.Blocks.Bits && slices.Equal(t.Blocks.Q, u.Blocks.Q) && slices.Equal(t.Blocks.Scale, u.Blocks.Scale)
}

// Equal reports whether two bundles hold the same model: shape, parameters bit
// for bit, tokenizer.
func Equal(a, b *Bundle) bool {
	if a.Arch != b.Arch || len(a.Params) != len(b.Params) {
		return false
	}
	for i, t := range a.Params {
		u := b.Params[i]
		if t.Name != u.Name || !slices.Equal(t.Shape, u.Shape) || !sameValues(t, u) {
			return false
		}
	}
	return token.Equal(a.Tokenizer, b.Tokenizer)
}
