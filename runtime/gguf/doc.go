// Package gguf writes and opens models in GGUF, the one-file format of llama.cpp and
// of what is built on it (Ollama, LM Studio, node-llama-cpp, …).
//
//	f, notes, err := gguf.FromBundle(b, gguf.Options{Type: gguf.Q8_0, Name: "whale"})
//	err = gguf.Write("whale.gguf", f)
//	err = gguf.Verify("whale.gguf", b)   // reads it back, and holds it against the bundle
//	b, err := gguf.Open("whale.gguf")    // as a bundle, weights widened to float32
//
// A file holds the architecture "llama" with its tokenizer and chat template, so that
// nothing else is needed to run it. Matrices have the type that is asked for; norms stay
// F32. With Q4_0 the output projection (the embedding, where the two are tied) is Q8_0,
// since every token's choice hangs on it, as llama.cpp itself gives it more bits. A row
// that blocks of 32 don't divide is F16 in quantised files, and FromBundle says so.
//
// llama.cpp rotates neighbouring elements of a head where Hugging Face rotates halves, so
// that rows of q and k are interleaved on the way out and taken apart on the way in.
//
// Invariants: the same bundle gives the same bytes. Parse never trusts a number of the
// file: it allocates no more than the file holds, and refuses gaps, overlaps, repeated
// names, unknown types and trailing bytes.
package gguf
