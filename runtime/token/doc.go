// Package token turns text into ids and back: byte-level BPE, trained,
// encoding and decoding exactly as Hugging Face's tokenizers does, and stored in
// the same tokenizer.json.
//
//	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: 4096, MinFrequency: 2, Threads: 2})
//	err = tr.Feed(ctx, file)          // or tr.Add(document), as often as there are documents
//	tok, err := tr.Train(ctx)         // tok.VocabSize() may be smaller than asked: the data had no more pairs
//	small, err := tok.Truncate(1024)  // the tokenizer that training to 1,024 would have given
//	ids := tok.Encode(nil, "Hello, 世界")
//	text := tok.Decode(ids)
//	data, err := tok.MarshalJSON()    // tokenizer.json
//	same, err := token.Parse(data)
//
// The caller's duties: a Trainer, an Encoder and a Decoder belong to one
// goroutine each; a Tokenizer never changes and serves any number. Encode takes
// text for what it is: "<|user|>" written by a person stays ordinary text.
// EncodeSpecial parses special tokens, and is for text the program itself made.
//
// Invariants: Decode(Encode(x)) == x for every string of bytes, valid UTF-8 or
// not. Encoding in chunks, in parallel and at once give the same ids. Training
// gives the same merges for the same words whatever the order, the chunking and
// the number of threads.
//
// Vocabulary: a piece is what the split expression cuts out of the text (a word
// with its leading space, up to three digits, a run of punctuation or space);
// merges never cross pieces. A symbol is a byte string with an id. A merge
// joins two neighbouring symbols into one; its rank is its place in the list,
// and lower ranks go first. A special token has an id but no bytes.
package token
