// Package bundle writes and opens what a build leaves: a folder in Hugging
// Face's layout that transformers (4 and 5), vLLM and autoglm itself load.
//
//	err := bundle.Write("out/bundle", &bundle.Bundle{Arch: a, Params: model.State(), Tokenizer: tok,
//		Generation: bundle.DefaultGeneration(), ChatTemplate: template, Card: card, Eval: eval})
//	b, err := bundle.Open("out/bundle")
//	b, err = bundle.Use("out/bundle", func(b *bundle.Bundle) error { … })   // weights mapped, not read
//
// The folder holds config.json, generation_config.json, model.safetensors,
// tokenizer.json, tokenizer_config.json, special_tokens_map.json,
// chat_template.jinja (when there is a template), README.md (the model card),
// card.json (the same as data) and eval.json (when there is one), which may hold a
// calibration beside the score. Some facts stand twice, because versions of
// transformers look in different places: rope_theta and rope_parameters, dtype
// and torch_dtype, the chat template as a file and in tokenizer_config.json.
//
// Open also takes folders that transformers' save_pretrained made, for Llama
// models of package glm's family: float32, float16 or bfloat16, whole or in
// shards.
//
// Weights may be of 8 or 4 bits (engine.Tensor's Blocks): the folder is then one of
// compressed-tensors in its pack-quantized format, symmetric and in groups of a multiple
// of 32, which transformers loads where that package is (packed.go). Open keeps the
// integers as they are. Floats that half precision holds exactly are stored so in such a
// folder; the embedding has to be floats, since transformers makes and ties it as such.
//
// The caller's duties: Params may alias a model's memory, so nothing may update
// the model while Write runs. What Open gives is the caller's own; what Use gives is the
// file's, read-only, until the function returns (map.go says what a file that changes does).
//
// Invariants: the same Bundle gives the same bytes. A folder that Write returned
// without error is complete; a crash leaves the older folder or the new one,
// never a mixture. Open refuses, by name, whatever would make the model compute
// something else than its maker saw: a missing, unexpected, misshapen or
// non-finite tensor (transformers itself only logs a missing one and goes on
// with random numbers), biases, scaled rotary embedding, another activation.
package bundle
