"""The same job for Hugging Face's tokenizers. Standard input: JSON
{"docs": [...], "vocab": N, "min_frequency": N, "ours": path or null, "lines": [...],
"gpt2": true to train with GPT-2's split and no BOS}.
Standard output: JSON {"file": tokenizer.json as trained here, "ids": ids of the
lines by the tokenizer in ours (else the trained one), "plain": the same without
BOS and without parsing special tokens, "texts": decoded lines}."""

import json
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = ["<|endoftext|>", "<|bos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def train_gpt2(docs, vocab):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(docs, trainer)
    tok.add_special_tokens(["<|endoftext|>"])
    return tok


def train(docs, vocab, min_frequency):
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=min_frequency,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(docs, trainer)
    bos = "<|bos|>"
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=False, trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tok.token_to_id(bos))]
            ),
        ]
    )
    return tok


def main():
    job = json.load(sys.stdin)
    out = {}
    tok = None
    if job.get("docs"):
        if job.get("gpt2"):
            tok = train_gpt2(job["docs"], job["vocab"])
        else:
            tok = train(job["docs"], job["vocab"], job["min_frequency"])
        out["file"] = json.loads(tok.to_str())
    if job.get("ours"):
        tok = Tokenizer.from_file(job["ours"])
    lines = job.get("lines") or []
    encoded = tok.encode_batch(lines)
    out["ids"] = [e.ids for e in encoded]
    out["texts"] = tok.decode_batch([e.ids for e in encoded], skip_special_tokens=True)
    tok.encode_special_tokens = True
    out["plain"] = [e.ids for e in tok.encode_batch(lines, add_special_tokens=False)]
    json.dump(out, sys.stdout)


main()
