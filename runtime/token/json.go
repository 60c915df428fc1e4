package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The parts of tokenizer.json, in the order in which tokenizers writes them.
type (
	fileJSON struct {
		Version       string          `json:"version"`
		Truncation    json.RawMessage `json:"truncation"`
		Padding       json.RawMessage `json:"padding"`
		AddedTokens   []addedJSON     `json:"added_tokens"`
		Normalizer    json.RawMessage `json:"normalizer"`
		PreTokenizer  *stepJSON       `json:"pre_tokenizer"`
		PostProcessor *stepJSON       `json:"post_processor"`
		Decoder       *stepJSON       `json:"decoder"`
		Model         *modelJSON      `json:"model"`
	}
	addedJSON struct {
		ID         int32  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		LStrip     bool   `json:"lstrip"`
		RStrip     bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	}
	stepJSON struct {
		Type          string                    `json:"type"`
		PreTokenizers []stepJSON                `json:"pretokenizers,omitempty"`
		Processors    []stepJSON                `json:"processors,omitempty"`
		Normalizers   []stepJSON                `json:"normalizers,omitempty"`
		Pattern       *patternJSON              `json:"pattern,omitempty"`
		Behavior      string                    `json:"behavior,omitempty"`
		Invert        *bool                     `json:"invert,omitempty"`
		AddPrefix     *bool                     `json:"add_prefix_space,omitempty"`
		TrimOffsets   *bool                     `json:"trim_offsets,omitempty"`
		UseRegex      *bool                     `json:"use_regex,omitempty"`
		Single        []templateJSON            `json:"single,omitempty"`
		Pair          []templateJSON            `json:"pair,omitempty"`
		SpecialTokens map[string]specialTokJSON `json:"special_tokens,omitempty"`
	}
	patternJSON struct {
		Regex  string `json:"Regex,omitempty"`
		String string `json:"String,omitempty"`
	}
	templateJSON struct {
		SpecialToken *templatePart `json:"SpecialToken,omitempty"`
		Sequence     *templatePart `json:"Sequence,omitempty"`
	}
	templatePart struct {
		ID     string `json:"id"`
		TypeID int    `json:"type_id"`
	}
	specialTokJSON struct {
		ID     string   `json:"id"`
		IDs    []int32  `json:"ids"`
		Tokens []string `json:"tokens"`
	}
	modelJSON struct {
		Type         string          `json:"type"`
		Dropout      *float64        `json:"dropout"`
		UnkToken     *string         `json:"unk_token"`
		Prefix       *string         `json:"continuing_subword_prefix"`
		Suffix       *string         `json:"end_of_word_suffix"`
		FuseUnk      bool            `json:"fuse_unk"`
		ByteFallback bool            `json:"byte_fallback"`
		IgnoreMerges bool            `json:"ignore_merges"`
		Vocab        vocabJSON       `json:"vocab"`
		Merges       json.RawMessage `json:"merges"`
	}
)

// vocabJSON is an object of piece to id, kept in the order of ids.
type vocabJSON []vocabEntry

type vocabEntry struct {
	piece string
	id    int32
}

func (v vocabJSON) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, e := range v {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(e.piece))
		fmt.Fprintf(&b, ":%d", e.id)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (v *vocabJSON) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
		return errors.New("must be an object of piece to id")
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		e := vocabEntry{piece: key.(string)}
		if err := d.Decode(&e.id); err != nil {
			return fmt.Errorf("id of %q: %w", e.piece, err)
		}
		if seen[e.piece] {
			return fmt.Errorf("%q stands twice", e.piece)
		}
		seen[e.piece] = true
		*v = append(*v, e)
	}
	return nil
}

// quote writes a JSON string without HTML escapes, as tokenizers does.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string and a Buffer don't fail
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Equal reports whether two tokenizers are the same: their files are.
func Equal(a, b *Tokenizer) bool {
	x, err := a.MarshalJSON()
	if err != nil {
		return false
	}
	y, err := b.MarshalJSON()
	return err == nil && bytes.Equal(x, y)
}

// MarshalJSON is the content of tokenizer.json, as tokenizers writes it: the
// same tokenizer gives the same bytes.
func (t *Tokenizer) MarshalJSON() ([]byte, error) {
	yes, no := true, false
	byteLevel := func(regex bool) stepJSON {
		return stepJSON{Type: "ByteLevel", AddPrefix: &no, TrimOffsets: &yes, UseRegex: &regex}
	}
	f := fileJSON{Version: "1.0", AddedTokens: []addedJSON{}}
	for _, a := range t.added {
		f.AddedTokens = append(f.AddedTokens, addedJSON{ID: a.id, Content: a.content, Normalized: a.normalized, Special: a.special})
	}
	if t.split == SplitLlama3 {
		f.PreTokenizer = &stepJSON{Type: "Sequence", PreTokenizers: []stepJSON{
			{Type: "Split", Pattern: &patternJSON{Regex: t.split.Pattern()}, Behavior: "Isolated", Invert: &no},
			byteLevel(false),
		}}
	} else {
		step := byteLevel(true)
		f.PreTokenizer = &step
	}
	post := byteLevel(true)
	post.TrimOffsets = &no
	f.PostProcessor = &post
	if t.bos >= 0 {
		bos := t.symbols[t.bos]
		b, a, second := templateJSON{SpecialToken: &templatePart{ID: bos}}, templateJSON{Sequence: &templatePart{ID: "A"}}, templateJSON{Sequence: &templatePart{ID: "B", TypeID: 1}}
		b2 := templateJSON{SpecialToken: &templatePart{ID: bos, TypeID: 1}}
		f.PostProcessor = &stepJSON{Type: "Sequence", Processors: []stepJSON{post, {
			Type: "TemplateProcessing", Single: []templateJSON{b, a}, Pair: []templateJSON{b, a, b2, second},
			SpecialTokens: map[string]specialTokJSON{bos: {ID: bos, IDs: []int32{t.bos}, Tokens: []string{bos}}},
		}}}
	}
	dec := byteLevel(true)
	dec.AddPrefix = &yes // as tokenizers writes it; decoding doesn't look at it
	f.Decoder = &dec

	m := &modelJSON{Type: "BPE", IgnoreMerges: t.ignoreMerges}
	for id, s := range t.symbols {
		if t.inModel[id] {
			if !t.IsAdded(int32(id)) {
				s = toAlphabet(s)
			}
			m.Vocab = append(m.Vocab, vocabEntry{s, int32(id)})
		}
	}
	merges := make([][2]string, len(t.merges))
	for i, p := range t.merges {
		merges[i] = [2]string{toAlphabet(t.symbols[p[0]]), toAlphabet(t.symbols[p[1]])}
	}
	raw, err := marshal(merges)
	if err != nil {
		return nil, err
	}
	m.Merges = raw
	f.Model = m
	return marshal(f)
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Parse reads a tokenizer.json: ours, or any byte-level BPE that splits as
// Llama 3 or GPT-2 do. What it can't do exactly as tokenizers does, it refuses.
// Truncation and padding are ignored: they are no part of the vocabulary.
func Parse(data []byte) (*Tokenizer, error) {
	t, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	return t, nil
}

func parse(data []byte) (*Tokenizer, error) {
	var f fileJSON
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	if f.Version != "" && f.Version != "1.0" {
		return nil, fmt.Errorf("version is %q, only 1.0 is known", f.Version)
	}
	if err := checkNormalizer(f.Normalizer); err != nil {
		return nil, err
	}
	m := f.Model
	switch {
	case m == nil:
		return nil, errors.New("model is missing")
	case m.Type != "BPE" && m.Type != "":
		return nil, fmt.Errorf("model.type is %q, only BPE is known", m.Type)
	case m.Dropout != nil && *m.Dropout != 0:
		return nil, fmt.Errorf("model.dropout is %g, must be null", *m.Dropout)
	case m.Prefix != nil && *m.Prefix != "":
		return nil, fmt.Errorf("model.continuing_subword_prefix is %q, must be null", *m.Prefix)
	case m.Suffix != nil && *m.Suffix != "":
		return nil, fmt.Errorf("model.end_of_word_suffix is %q, must be null", *m.Suffix)
	case m.ByteFallback:
		return nil, errors.New("model.byte_fallback is true: that is SentencePiece's BPE, only byte-level BPE is known")
	case f.Decoder == nil || f.Decoder.Type != "ByteLevel":
		return nil, errors.New("decoder must be ByteLevel")
	}
	t := &Tokenizer{ignoreMerges: m.IgnoreMerges, bos: -1}
	var err error
	if t.split, err = splitStep(f.PreTokenizer); err != nil {
		return nil, err
	}
	if err := t.setVocab(m.Vocab, f.AddedTokens); err != nil {
		return nil, err
	}
	if err := t.setMerges(m); err != nil {
		return nil, err
	}
	if err := t.setTemplate(f.PostProcessor); err != nil {
		return nil, err
	}
	if err := t.finish(); err != nil {
		return nil, err
	}
	return t, nil
}

func checkNormalizer(raw json.RawMessage) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var n stepJSON
	if err := json.Unmarshal(raw, &n); err != nil {
		return fmt.Errorf("normalizer: %w", err)
	}
	if n.Type == "Sequence" && len(n.Normalizers) == 0 {
		return nil
	}
	return fmt.Errorf("normalizer is %q, must be null", n.Type)
}

func splitStep(p *stepJSON) (Split, error) {
	is := func(b *bool, want bool) bool { return b != nil && *b == want }
	if p == nil {
		return 0, errors.New("pre_tokenizer is missing, must be ByteLevel or a Split and ByteLevel")
	}
	steps := []stepJSON{*p}
	if p.Type == "Sequence" {
		steps = p.PreTokenizers
	}
	if len(steps) == 0 || steps[len(steps)-1].Type != "ByteLevel" {
		return 0, fmt.Errorf("pre_tokenizer %q must end with ByteLevel", p.Type)
	}
	last := steps[len(steps)-1]
	switch {
	case !is(last.AddPrefix, false):
		return 0, errors.New("pre_tokenizer: add_prefix_space must be false")
	case len(steps) == 1:
		if is(last.UseRegex, false) {
			return 0, errors.New("pre_tokenizer: ByteLevel with use_regex false and no Split is not known")
		}
		return SplitGPT2, nil
	case len(steps) != 2 || steps[0].Type != "Split" || steps[0].Pattern == nil:
		return 0, errors.New("pre_tokenizer must be ByteLevel, or a Split and ByteLevel")
	case !is(last.UseRegex, false):
		return 0, errors.New("pre_tokenizer: ByteLevel after a Split must have use_regex false")
	case !strings.EqualFold(steps[0].Behavior, "isolated") || is(steps[0].Invert, true):
		return 0, fmt.Errorf("pre_tokenizer: Split's behavior is %q, must be Isolated and not inverted", steps[0].Behavior)
	}
	return splitOf(steps[0].Pattern.Regex)
}

func (t *Tokenizer) setVocab(vocab vocabJSON, adds []addedJSON) error {
	size := int32(0)
	grow := func(where string, id int32) error {
		if id < 0 || id >= MaxVocab {
			return fmt.Errorf("%s: id %d is not in 0 to %d", where, id, MaxVocab-1)
		}
		size = max(size, id+1)
		return nil
	}
	for _, e := range vocab {
		if err := grow(fmt.Sprintf("model.vocab %q", e.piece), e.id); err != nil {
			return err
		}
	}
	for i, a := range adds {
		where := fmt.Sprintf("added_tokens[%d] %q", i, a.Content)
		if err := grow(where, a.ID); err != nil {
			return err
		}
		if a.Content == "" {
			return fmt.Errorf("%s: content is empty", where)
		}
		if a.SingleWord || a.LStrip || a.RStrip {
			return fmt.Errorf("%s: single_word, lstrip and rstrip must be false", where)
		}
		t.added = append(t.added, added{id: a.ID, content: a.Content, normalized: a.Normalized, special: a.Special})
	}
	slices.SortStableFunc(t.added, func(a, b added) int { return int(a.id) - int(b.id) })
	t.symbols, t.inModel = make([]string, size), make([]bool, size)
	addedAt := map[int32]string{}
	addedID := map[string]int32{}
	for _, a := range t.added {
		if old, ok := addedAt[a.id]; ok {
			return fmt.Errorf("added_tokens: id %d stands for both %q and %q", a.id, old, a.content)
		}
		if old, ok := addedID[a.content]; ok {
			return fmt.Errorf("added_tokens: %q has both id %d and %d", a.content, old, a.id)
		}
		addedAt[a.id], addedID[a.content] = a.content, a.id
		t.symbols[a.id] = a.content
	}
	for _, e := range vocab {
		if t.inModel[e.id] {
			return fmt.Errorf("model.vocab: id %d stands for both %q and another piece", e.id, e.piece)
		}
		t.inModel[e.id] = true
		if content, ok := addedAt[e.id]; ok {
			if content != e.piece {
				return fmt.Errorf("id %d is %q in model.vocab and %q in added_tokens", e.id, e.piece, content)
			}
			continue
		}
		if id, ok := addedID[e.piece]; ok {
			return fmt.Errorf("%q has id %d in model.vocab and %d in added_tokens", e.piece, e.id, id)
		}
		raw, ok := fromAlphabet(e.piece)
		if !ok || raw == "" {
			return fmt.Errorf("model.vocab: %q (id %d) is not written in the byte alphabet: not a byte-level tokenizer", e.piece, e.id)
		}
		t.symbols[e.id] = raw
	}
	return nil
}

// setMerges reads both forms: ["a", "b"] and "a b".
func (t *Tokenizer) setMerges(m *modelJSON) error {
	ids := make(map[string]int32, len(m.Vocab))
	for _, e := range m.Vocab {
		ids[e.piece] = e.id
	}
	var pairs [][]string
	if err := json.Unmarshal(m.Merges, &pairs); err != nil {
		var lines []string
		if json.Unmarshal(m.Merges, &lines) != nil {
			return errors.New(`model.merges must be a list of ["left", "right"] or of "left right"`)
		}
		pairs = make([][]string, len(lines))
		for i, line := range lines {
			pairs[i] = strings.Split(line, " ")
		}
	}
	t.merges = make([][2]int32, 0, len(pairs))
	for i, p := range pairs {
		if len(p) != 2 {
			return fmt.Errorf("model.merges[%d] has %d parts, must have 2", i, len(p))
		}
		var m [2]int32
		for j, part := range p {
			id, ok := ids[part]
			if !ok {
				return fmt.Errorf("model.merges[%d]: %q is not in model.vocab", i, part)
			}
			if slices.ContainsFunc(t.added, func(a added) bool { return a.id == id }) {
				return fmt.Errorf("model.merges[%d]: %q is an added token, which no merge can use", i, part)
			}
			m[j] = id
		}
		t.merges = append(t.merges, m)
	}
	return nil
}

// setTemplate finds the BOS that the post-processor puts before a sequence.
func (t *Tokenizer) setTemplate(p *stepJSON) error {
	if p == nil {
		return nil
	}
	steps := []stepJSON{*p}
	if p.Type == "Sequence" {
		steps = p.Processors
	}
	for _, s := range steps {
		switch s.Type {
		case "ByteLevel":
		case "TemplateProcessing":
			single := s.Single
			if len(single) == 1 && single[0].Sequence != nil {
				continue
			}
			if len(single) != 2 || single[0].SpecialToken == nil || single[1].Sequence == nil {
				return errors.New("post_processor: template must be a sequence, or one special token and a sequence")
			}
			name := single[0].SpecialToken.ID
			tok, ok := s.SpecialTokens[name]
			if !ok || len(tok.IDs) != 1 || tok.IDs[0] < 0 || int(tok.IDs[0]) >= len(t.symbols) || t.bos >= 0 {
				return fmt.Errorf("post_processor: special token %q has no single id in the vocabulary", name)
			}
			t.bos = tok.IDs[0]
		default:
			return fmt.Errorf("post_processor %q is not known", s.Type)
		}
	}
	return nil
}
