package bundle

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
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
	EvalFile            = "eval.json"
)

// Bundle is a trained model with everything that is needed to use it.
type Bundle struct {
	Arch         glm.Arch
	Params       engine.StateDict // every parameter of Arch.Layout; Write leaves out optimiser state
	Tokenizer    *token.Tokenizer // its vocabulary may be smaller than Arch.Vocab, which is padded
	Generation   Generation
	ChatTemplate string // Jinja; "" for a model that doesn't chat
	Card         Card   // written only
	CardText     string // the model card as it is; Write takes it in place of Card
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
	exists, err := replaceable(dir)
	if err != nil {
		return err
	}
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".tmp-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // what is there now: nothing, or the older bundle
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp, b, params); err != nil {
		return err
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if exists {
		err = exchange(tmp, dir)
	} else {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return err
	}
	return syncDir(parent)
}

// replaceable reports whether dir is there, and refuses one that is no bundle.
func replaceable(dir string) (exists bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if len(entries) == 0 {
		return true, nil
	}
	if _, err := os.Stat(filepath.Join(dir, ConfigFile)); err != nil {
		return false, errors.New("the folder holds files but no bundle; remove it or choose another")
	}
	return true, nil
}

// exchange swaps two folders: in one step where the file system can, else in
// two renames, of which the first is undone if the second fails.
func exchange(tmp, dir string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	old := tmp + ".old"
	if err := os.Rename(dir, old); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return errors.Join(err, os.Rename(old, dir))
	}
	return os.RemoveAll(old)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fill writes the files of b into the empty folder dir.
func fill(dir string, b *Bundle, params engine.StateDict) error {
	tokenizer, err := b.Tokenizer.MarshalJSON()
	if err != nil {
		return err
	}
	config := makeConfig(b.Arch, b.Generation)
	config.Quantization = quantizationOf(b.Arch, params)
	card := b.CardText
	if card == "" {
		card = b.Card.markdown(b)
	}
	files := []struct {
		name string
		data any // []byte as it is, else JSON
	}{
		{ConfigFile, config},
		{GenerationFile, makeGeneration(b.Generation)},
		{TokenizerFile, tokenizer},
		{TokenizerConfigFile, b.tokenizerConfig()},
		{SpecialTokensFile, b.specialTokens()},
		{CardFile, []byte(card)},
	}
	if b.ChatTemplate != "" {
		files = append(files, struct {
			name string
			data any
		}{ChatTemplateFile, []byte(b.ChatTemplate)})
	}
	if b.Eval != nil {
		files = append(files, struct {
			name string
			data any
		}{EvalFile, []byte(b.Eval)})
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
	return writeFile(filepath.Join(dir, WeightsFile), func(w io.Writer) error { return WriteSafetensors(w, params) })
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
	if err == nil {
		err = f.Sync()
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
