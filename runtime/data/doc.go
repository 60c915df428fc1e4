// Package data turns the user's files into clean, split examples on disk, as a
// stream: memory stays bounded for a file of any size.
//
//	cfg := data.DefaultConfig()
//	cfg.Files = []string{"faq.csv"}
//	probe, err := data.Probe(ctx, cfg)              // what the data looks like, and why
//	report, err := data.Prepare(ctx, cfg, "out/data", data.Events{})
//	part, err := data.OpenPart("out/data", "train") // iterate examples
//	for {
//		example, err := part.Next() // io.EOF at the end
//		…
//	}
//
// The way of a row: source (file, URL, plugin) → decompression by magic bytes →
// encoding to UTF-8 → reader (JSONL, JSON, CSV, Parquet, plain text) → cleaning
// steps of the user → repairs and checks, each with a count → exact and near
// duplicates → spool → split → train.part, valid.part, test.part. What is dropped
// is listed in dropped.jsonl with file, line and rule; report.json has the counts.
//
// # Caller's duties
//
// One Prepare at a time writes into a folder. The context may be cancelled at any
// time. A *InputError is the user's to mend (exit code 2); any other error is the
// machine's. PartReaders are closed by the caller and used by one goroutine. Texts
// are never parsed for special tokens: a tokenizer must encode Segment.Text as plain
// text and place the tokens of Segment.Role, BOS and EOS itself, as Example says.
//
// # Invariants
//
//   - The same input and configuration give the same bytes, with any Memory.
//   - report.json is written last; a folder without it is not prepared. On error
//     nothing half-written is left.
//   - Rows = Kept + Dropped, but for rows that were split because they are too long.
//     (Blank lines are counted as a rule and as neither.)
//   - No group of rows (equal context, else question, document, text or opening of
//     a dialogue) stands in two parts, and no duplicate does.
//   - One long text is cut into contiguous train, valid and test; together they are
//     the text, less control characters and broken bytes.
//   - A file that changes while it is read is an error, one that grows is read up
//     to its first size.
//
// # Vocabulary
//
//   - source: what gives rows; file, URL or plugin.
//   - role of a column: text, question, context, answer, document, summary, label,
//     messages.
//   - rule: why a row is dropped or how it is repaired.
//   - part: train (to learn), valid (the search's score), test (held out, for the
//     final score).
//   - piece: a stretch of a long text; pieces of one text follow one another.
//   - plugin: DataPlugin in Go, or an executable that speaks the line protocol of
//     PLUGINS.md.
package data
