package bundle

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Names of the files of a bundle.
const (
	ConfigFile          = "config.json"
	GenerationFile      = "generation_config.json"
	WeightsFile         = "model.safetensors"
	WeightsIndexFile    = "model.safetensors.index.json"
	TokenizerFile       = "tokenizer.json"
	TokenizerConfigFile = "tokenizer_config.json"
	SpecialTokensFile   = "special_tokens_map.json"
	ChatTemplateFile    = "chat_template.jinja"
	CardFile            = "README.md"
	CardDataFile        = "card.json" // the card as data: what an SBOM and provenance are made from
	EvalFile            = "eval.json"
)

// Bundle is a trained model with everything that is needed to use it.
type Bundle struct {
	Arch         glm.Arch
	DType        DType            // of the weights that Write stores; Open widens what it reads
	Params       engine.StateDict // every parameter of Arch.Layout; Write leaves out optimiser state
	Tokenizer    *token.Tokenizer // its vocabulary may be smaller than Arch.Vocab, which is padded
	Generation   Generation
	ChatTemplate string // Jinja; "" for a model that doesn't chat
	Card         Card
	// Readme is the text of a card that another program wrote, "" to write one from Card.
	Readme string
	// Eval is the content of eval.json, nil for none.
	Eval json.RawMessage
}

// Validate reports the first reason why the bundle would not load.
func (b *Bundle) Validate() error {
	if err := b.Arch.Validate(); err != nil {
		return err
	}
	if b.Tokenizer == nil {
		return errors.New("bundle has no tokenizer")
	}
	if n := b.Tokenizer.VocabSize(); n > b.Arch.Vocab {
		return fmt.Errorf("tokenizer has %d ids, the model only %d", n, b.Arch.Vocab)
	}
	if err := b.Generation.validate(b.Arch.Vocab); err != nil {
		return err
	}
	switch b.DType {
	case "", Float32, Float16, BFloat16:
	default:
		return fmt.Errorf("weights of type %q are not known; float32, float16 and bfloat16 are", b.DType)
	}
	if b.Eval != nil && !json.Valid(b.Eval) {
		return fmt.Errorf("%s is not JSON", EvalFile)
	}
	return nil
}

// Write makes the folder dir, or replaces the bundle that is there, in one step:
// it is written beside dir, synced, and renamed. A folder that holds something
// else is refused.
func Write(dir string, b *Bundle) error {
	if err := write(dir, b); err != nil {
		return fmt.Errorf("write bundle %s: %w", dir, err)
	}
	return nil
}

func write(dir string, b *Bundle) error {
	if err := b.Validate(); err != nil {
		return err
	}
	params, err := arrange(b.Arch, b.Params)
	if err != nil {
		return err
	}
	if err := replaceable(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(dir)), 0o755); err != nil {
		return err
	}
	return durable.WriteDir(dir, func(tmp string) error { return fill(tmp, b, params) })
}

// replaceable refuses a folder that holds something else than a bundle.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(entries) == 0 {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, ConfigFile)); err != nil {
		return errors.New("the folder holds files but no bundle; remove it or choose another")
	}
	return nil
}

// fill writes the files of b into the empty folder dir.
func fill(dir string, b *Bundle, params engine.StateDict) error {
	tokenizer, err := b.Tokenizer.MarshalJSON()
	if err != nil {
		return err
	}
	readme := b.Readme
	if readme == "" {
		readme = b.Card.markdown(b)
	}
	config := makeConfig(b.Arch, b.Generation, cmp.Or(b.DType, Float32))
	config.Quantization = quantizationOf(b.Arch, params)
	type file struct {
		name string
		data any // []byte as it is, else JSON
	}
	files := []file{
		{ConfigFile, config},
		{GenerationFile, makeGeneration(b.Generation)},
		{TokenizerFile, tokenizer},
		{TokenizerConfigFile, b.tokenizerConfig()},
		{SpecialTokensFile, b.specialTokens()},
		{CardFile, []byte(readme)},
	}
	if b.Readme == "" {
		files = append(files, file{CardDataFile, b.Card})
	}
	if b.ChatTemplate != "" {
		files = append(files, file{ChatTemplateFile, []byte(b.ChatTemplate)})
	}
	if b.Eval != nil {
		files = append(files, file{EvalFile, []byte(b.Eval)})
	}
	for _, f := range files {
		data, ok := f.data.([]byte)
		if !ok {
			if data, err = marshal(f.data); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
		if err := writeFile(filepath.Join(dir, f.name), func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dir, WeightsFile), func(w io.Writer) error { return writeSafetensors(w, params, b.DType) })
}

func writeFile(path string, body func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<18)
	err = body(w)
	if err == nil {
		err = w.Flush()
	}
	return errors.Join(err, f.Close())
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}

// specialTokens is special_tokens_map.json, which transformers 4 reads.
func (b *Bundle) specialTokens() map[string]string {
	m := map[string]string{}
	set := func(key string, id int32) {
		if s := b.Tokenizer.Symbol(id); s != "" {
			m[key] = s
		}
	}
	set("bos_token", b.Generation.BOS)
	set("pad_token", b.Generation.Pad)
	if len(b.Generation.EOS) > 0 {
		set("eos_token", b.Generation.EOS[0])
	}
	return m
}

type tokenizerConfigJSON struct {
	AddedTokens    map[string]addedTokenJSON `json:"added_tokens_decoder"`
	BOS            string                    `json:"bos_token,omitempty"`
	ChatTemplate   string                    `json:"chat_template,omitempty"`
	CleanUp        bool                      `json:"clean_up_tokenization_spaces"`
	EOS            string                    `json:"eos_token,omitempty"`
	ModelMaxLength int                       `json:"model_max_length"`
	Pad            string                    `json:"pad_token,omitempty"`
	TokenizerClass string                    `json:"tokenizer_class"`
}

type addedTokenJSON struct {
	Content    string `json:"content"`
	LStrip     bool   `json:"lstrip"`
	Normalized bool   `json:"normalized"`
	RStrip     bool   `json:"rstrip"`
	SingleWord bool   `json:"single_word"`
	Special    bool   `json:"special"`
}

func (b *Bundle) tokenizerConfig() tokenizerConfigJSON {
	m := b.specialTokens()
	c := tokenizerConfigJSON{
		BOS: m["bos_token"], EOS: m["eos_token"], Pad: m["pad_token"], ChatTemplate: b.ChatTemplate,
		ModelMaxLength: b.Arch.Context, AddedTokens: map[string]addedTokenJSON{},
		TokenizerClass: "PreTrainedTokenizerFast", // the name that both 4 and 5 know
	}
	for id := range int32(b.Tokenizer.VocabSize()) {
		if b.Tokenizer.IsAdded(id) {
			c.AddedTokens[fmt.Sprint(id)] = addedTokenJSON{Content: b.Tokenizer.Symbol(id), Special: b.Tokenizer.IsSpecial(id)}
		}
	}
	return c
}
