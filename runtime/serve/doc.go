// Package serve generates text with a model: sampling, stop rules and the loop
// around an engine.Decoder.
//
//	req := serve.Defaults(b)            // what the bundle's generation_config.json says
//	req.Prompt, req.MaxTokens = "Once upon a time", 200
//	res, err := serve.Generate(ctx, dec, b.Tokenizer, req, func(text string) error {
//		_, err := os.Stdout.WriteString(text)
//		return err
//	})
//
// Latency times a decoder.
//
// The caller's duties: the Decoder belongs to the calling goroutine while
// Generate runs, and sequence req.Seq is Generate's own; it is dropped at the
// end. emit is called from the same goroutine, with valid UTF-8, never empty; it
// may block, and its error ends the generation.
//
// Invariants: what emit was given, joined, is Result.Text. The same request, model
// and seed give the same text. No stop string, whole or begun, is ever emitted
// before it is sure that the text goes on otherwise. A prompt is never cut: one that
// exceeds the context is an error.
//
// When the context is full the oldest tokens are forgotten: the last half of
// the context (after the beginning-of-text token, if the prompt starts with it)
// is prefilled anew and generation goes on. Result.Slides counts that.
//
// Samplers apply in Hugging Face's order: repetition penalty, temperature, top-k,
// top-p, min-p, then one draw. (llama.cpp applies temperature last; with a
// temperature of 1 both orders are the same.)
package serve
