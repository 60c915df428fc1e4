package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// done tells what a finished build left: the leaderboard, three completions,
// where everything is, and what to type next.
func (v *view) done(ctx context.Context) error {
	dir := filepath.Join(v.dir, "bundle")
	b, err := bundle.Open(dir)
	if err != nil {
		return err
	}
	var e node.Evaluation
	if b.Eval != nil {
		if err := json.Unmarshal(b.Eval, &e); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, bundle.EvalFile), err)
		}
	}
	prompts := samplePrompts(v.dir)
	samples := make([]string, len(prompts))
	for i, p := range prompts {
		if samples[i], err = complete(ctx, b, p, uint64(i+1)); err != nil {
			return err
		}
	}
	if err := keepSamples(v.dir, prompts, samples); err != nil {
		return err
	}
	state := v.last.State
	if err := writeReport(v.dir, &state); err != nil {
		return err
	}
	var misses []string
	if f := v.last.Board.Final; f != nil {
		misses = f.Misses
	}
	if len(misses) > 0 {
		defer fmt.Fprintf(os.Stderr, "autoglm: the model in %s MISSES a constraint: %s.\n%s\n", dir, strings.Join(misses, ", "), remedy(v.dir, &v.last.Board))
	}
	if v.json {
		v.line(struct {
			Event       string   `json:"event"`
			Dir         string   `json:"dir"`
			Bundle      string   `json:"bundle"`
			BitsPerByte float64  `json:"bits_per_byte"`
			Bytes       int64    `json:"bytes"`
			Samples     []string `json:"samples"`
			Misses      []string `json:"misses,omitempty"` // constraints
		}{"done", v.dir, dir, e.BitsPerByte, e.Bytes, samples, misses})
		return nil
	}
	board, err := readBoard(v.dir)
	if err != nil {
		return err
	}
	fmt.Fprintln(v.out)
	printBoard(v.out, board, 8)
	fmt.Fprintf(v.out, "\nHeld-out text: %.4f bits per byte", e.BitsPerByte)
	if e.Metric != "" {
		fmt.Fprintf(v.out, ", %s %.3f on %d examples", e.Metric, e.Value, e.Examples)
	}
	fmt.Fprintf(v.out, ", %s parameters%s\n", size(b.Arch.Params()), costWords(&board, board.Final.Cost))
	for _, m := range misses {
		fmt.Fprintf(v.out, "!! A constraint is MISSED: %s\n", m)
	}
	if others := fronters(board); others != "" {
		fmt.Fprintf(v.out, "On the front beside it: %s (autoglm bundle %s --trial ID --out DIR)\n", others, v.dir)
	}
	for i, s := range samples {
		fmt.Fprintf(v.out, "\n  ▸ %s%s\n", prompts[i].shown, indent(s))
	}
	fmt.Fprintf(v.out, `
Model     %s (load it with transformers, vLLM or autoglm)
Report    %s
Trials    %s
%s
Next: autoglm generate %s %s%q
`, dir, filepath.Join(v.dir, "report.html"), filepath.Join(v.dir, "leaderboard.json"), compressedLine(v.dir, state.Spec.Compress != nil), dir, promptFlag(prompts[0]), strings.TrimSuffix(prompts[0].shown, arrow))
	return nil
}

// compressedLine names the smaller model of a job that made one.
func compressedLine(dir string, made bool) string {
	if !made {
		return ""
	}
	return fmt.Sprintf("Smaller   %s\n", filepath.Join(dir, "compressed"))
}

// remedy says what can be done about a model that misses a constraint.
func remedy(dir string, b *journal.Leaderboard) string {
	for _, e := range b.Trials {
		if e.Score != nil && len(e.Misses) == 0 {
			return fmt.Sprintf("Trial %s held them all; for a model of it: autoglm bundle %s --trial %s --out DIR", e.ID, dir, e.ID)
		}
	}
	return "No trial held them all: allow more in constraints, or let smaller models in by space"
}

// fronters are the trials of the front that were not trained to the end.
func fronters(b journal.Leaderboard) string {
	var out []string
	for _, e := range b.Trials {
		if e.Front && b.Final != nil && e.ID != b.Final.Parent {
			out = append(out, fmt.Sprintf("%s %.4f%s", e.ID, *e.Score, costWords(&b, e.Cost)))
		}
	}
	return strings.Join(out, "; ")
}

// arrow stands between a question and its answer.
const arrow = " → "

func promptFlag(p prompt) string {
	if p.chat {
		return "--chat --prompt "
	}
	return "--prompt "
}

func indent(s string) string { return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ") }

type prompt struct {
	shown string // what a person reads
	text  string
	chat  bool
}

// samplePrompts are the beginnings of three held-out texts.
func samplePrompts(dir string) []prompt {
	var out []prompt
	r, err := data.OpenPart(filepath.Join(dir, "data"), "test")
	if err != nil {
		return []prompt{{shown: "The", text: "The"}}
	}
	defer r.Close()
	for len(out) < 3 {
		ex, err := r.Next()
		if err != nil {
			break
		}
		if ex.Segments[0].Role == "" {
			// Places spread over a long text; its first words at least.
			words := strings.Fields(clip(ex.Segments[0].Text, 4000))
			for i := 0; i < len(words)-6 && len(out) < 3; i += max(40, len(words)/3) {
				t := strings.Join(words[i:i+4], " ")
				out = append(out, prompt{shown: t, text: t})
			}
			continue
		}
		var b strings.Builder
		b.WriteString(data.BOS)
		shown := ""
		for _, s := range ex.Segments {
			if s.Role == data.Assistant {
				break
			}
			b.WriteString(s.Role + s.Text)
			shown = s.Text
		}
		out = append(out, prompt{shown: clip(strings.ReplaceAll(shown, "\n", " "), 200) + arrow, text: b.String() + data.Assistant, chat: true})
	}
	if len(out) == 0 {
		out = []prompt{{shown: "The", text: "The"}}
	}
	return out
}

func complete(ctx context.Context, b *bundle.Bundle, p prompt, seed uint64) (string, error) {
	dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: 1, MaxSeqs: 1})
	if err != nil {
		return "", err
	}
	defer dec.Close()
	req := serve.Defaults(b)
	req.Prompt, req.Special, req.MaxTokens = p.text, p.chat, 48
	req.Sampling.Seed = seed
	if p.chat {
		ids := b.Tokenizer.EncodeSpecial(nil, p.text)
		if room := b.Arch.Context - 8; len(ids) > room {
			ids = ids[len(ids)-room:] // the end of a long dialogue
		}
		req.IDs = ids
	}
	res, err := serve.Generate(ctx, dec, b.Tokenizer, req, nil)
	return res.Text, err
}

func readBoard(dir string) (journal.Leaderboard, error) {
	var b journal.Leaderboard
	path := filepath.Join(dir, "leaderboard.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(raw, &b); err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
