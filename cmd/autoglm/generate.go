package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/gguf"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// openBundle reads a bundle, or a GGUF file; what is wrong with it is the user's to mend.
func openBundle(path string) (*bundle.Bundle, error) {
	open := bundle.Open
	if filepath.Ext(path) == ".gguf" {
		open = gguf.Open
	}
	b, err := open(path)
	if err != nil {
		return nil, usageError{err}
	}
	return b, nil
}

func generateCommand() *cobra.Command {
	var prompt, promptFile, system string
	var chat, stats bool
	var stop []string
	var s serve.Sampling
	var tokens int
	c := &cobra.Command{
		Use:   "generate BUNDLE",
		Short: "Continue a prompt with a model",
		Long: `Generate continues a prompt with any bundle: one that build left, a Llama that
transformers saved, or a GGUF file that export wrote. Text streams out as it is made. Flags that are not given
come from the bundle's generation_config.json.`,
		Example: `  autoglm generate run1/bundle --prompt "Call me"
  autoglm generate run1/bundle --chat --prompt "who wrote Hamlet?" --temperature 0
  echo "Once upon" | autoglm generate run1/bundle --prompt-file -`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			fl := c.Flags()
			if fl.Changed("prompt") && fl.Changed("prompt-file") {
				return usageError{errors.New("--prompt and --prompt-file are two prompts; give one")}
			}
			if promptFile != "" {
				var raw []byte
				var err error
				if promptFile == "-" {
					raw, err = io.ReadAll(os.Stdin)
				} else {
					raw, err = os.ReadFile(promptFile)
				}
				if err != nil {
					return usageError{err}
				}
				prompt = string(raw)
			}
			b, err := openBundle(args[0])
			if err != nil {
				return err
			}
			req := serve.Defaults(b)
			req.Prompt, req.Stop = prompt, stop
			if chat || system != "" {
				req.Prompt, req.Special = chatPrompt(b, system, prompt), true
			}
			for name, set := range map[string]func(){
				"temperature":        func() { req.Sampling.Temperature = s.Temperature },
				"top-k":              func() { req.Sampling.TopK = s.TopK },
				"top-p":              func() { req.Sampling.TopP = s.TopP },
				"min-p":              func() { req.Sampling.MinP = s.MinP },
				"repetition-penalty": func() { req.Sampling.RepetitionPenalty = s.RepetitionPenalty },
				"max-tokens":         func() { req.MaxTokens = tokens },
			} {
				if fl.Changed(name) {
					set()
				}
			}
			req.Sampling.Seed = s.Seed
			if !fl.Changed("seed") {
				req.Sampling.Seed = uint64(time.Now().UnixNano())
			}
			if err := req.Sampling.Validate(); err != nil {
				return usageError{err}
			}
			return generate(c.Context(), b, req, chat, stats)
		},
	}
	fl := c.Flags()
	fl.StringVar(&prompt, "prompt", "", "text to continue")
	fl.StringVar(&promptFile, "prompt-file", "", "`FILE` that holds the prompt; - is standard input")
	fl.BoolVar(&chat, "chat", false, "the prompt is a user's message: answer it by the chat template")
	fl.StringVar(&system, "system", "", "system message of the chat")
	fl.IntVar(&tokens, "max-tokens", 256, "most tokens to generate")
	fl.Float64Var(&s.Temperature, "temperature", 0.8, "0 takes the likeliest token each time")
	fl.IntVar(&s.TopK, "top-k", 0, "sample from the k likeliest tokens; 0 is off")
	fl.Float64Var(&s.TopP, "top-p", 0.95, "sample from the likeliest tokens that sum to p; 1 is off")
	fl.Float64Var(&s.MinP, "min-p", 0, "drop tokens below this share of the likeliest's probability; 0 is off")
	fl.Float64Var(&s.RepetitionPenalty, "repetition-penalty", 1, "above 1 makes tokens that were used less likely")
	fl.Uint64Var(&s.Seed, "seed", 0, "seed of the sampling; the same seed gives the same text (default: the time)")
	fl.StringArrayVar(&stop, "stop", nil, "text that ends the generation (may be repeated)")
	fl.BoolVar(&stats, "stats", false, "print tokens and speed on standard error")
	return c
}

// chatPrompt renders one turn as the bundle's chat template does.
func chatPrompt(_ *bundle.Bundle, system, user string) string {
	p := data.BOS
	if system != "" {
		p += data.System + strings.TrimSpace(system)
	}
	return p + data.User + strings.TrimSpace(user) + data.Assistant
}

func generate(ctx context.Context, b *bundle.Bundle, req serve.Request, chat, stats bool) error {
	dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: 1, MaxSeqs: 1})
	if err != nil {
		return err
	}
	defer dec.Close()
	out := bufio.NewWriter(os.Stdout)
	if !chat && !req.Special {
		fmt.Fprint(out, req.Prompt)
	}
	begin := time.Now()
	res, err := serve.Generate(ctx, dec, b.Tokenizer, req, func(piece string) error {
		_, err := out.WriteString(piece)
		return errors.Join(err, out.Flush())
	})
	fmt.Fprintln(out)
	if err := errors.Join(err, out.Flush()); err != nil {
		var full *serve.ContextError
		if errors.As(err, &full) {
			return usageError{err}
		}
		return err
	}
	if stats {
		t := time.Since(begin).Seconds()
		fmt.Fprintf(os.Stderr, "%d prompt tokens, %d generated in %.2f s (%.0f tokens/s), ended by %s\n", res.PromptTokens, len(res.IDs), t, float64(len(res.IDs))/t, res.Reason)
	}
	return nil
}
