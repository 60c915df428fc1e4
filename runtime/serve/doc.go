// Package serve generates text with models: sampling, stop rules, the loop around an
// engine.Decoder, and a Scheduler that runs many such loops together.
//
//	req := serve.Defaults(b)            // what the bundle's generation_config.json says
//	req.Prompt, req.MaxTokens = "Once upon a time", 200
//	res, err := serve.Generate(ctx, dec, b.Tokenizer, req, func(text string) error {
//		_, err := os.Stdout.WriteString(text)
//		return err
//	})
//
// A server holds its models in a Hub, each with a Scheduler of its own:
//
//	hub := serve.NewHub(open, serve.DefaultSchedulerConfig(), nil)
//	err := hub.Load("small", "run1/bundle")        // again: a new version takes over
//	m, release, err := hub.Get("small", "")
//	defer release()
//	res, err := m.Generate(ctx, req, func(p serve.Piece) error { … })
//	hub.Drain(ctx)
//
// An opener may return a Pair, a decoder on the GPU and one on the CPU: then each has a
// Scheduler, and a Router says by the GPU's load where a text begins.
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
// exceeds the context is an error. A Scheduler gives the same text as Generate does, as
// long as the context is not full, whatever runs beside it: decoders' logits don't depend
// on that. (Engine torch's do within rounding, and so do a Pair's two devices.)
//
// When the context is full the oldest tokens are forgotten: the last half of
// the context (after the beginning-of-text token, if the prompt starts with it)
// is prefilled anew and generation goes on. Result.Slides counts that. A Scheduler ends
// the text there.
//
// Vocabulary: a slot is a sequence of the decoder that a request may have. A round
// computes a piece of one prompt, and one token of each text that is past its prompt.
// A page holds the keys and values of some tokens (engine.KVCache); texts that begin alike
// share them. A request is admitted when it has a slot and the pages that it may come to
// need; draining is answering those that were taken
// and taking no more. A canary is a version that is given a share of a model's requests.
//
// Samplers apply in Hugging Face's order: repetition penalty, temperature, top-k,
// top-p, min-p, then one draw. (llama.cpp applies temperature last; with a
// temperature of 1 both orders are the same.)
package serve
