"""Peer of bench/token: Hugging Face's tokenizers trains on the lines of
DIR/train.txt and encodes DIR/encode.txt with DIR/tokenizer.json. Usage:
token_hf.py DIR VOCAB, with RAYON_NUM_THREADS set. Prints one JSON object.
encode_mb_s is one call on one string, encode_all_mb_s is encode_batch of its
lines on all threads."""

import json
import sys
import time

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = ["<|endoftext|>", "<|bos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def main():
    folder, vocab = sys.argv[1], int(sys.argv[2])
    with open(folder + "/train.txt", encoding="utf-8", newline="") as f:
        text = f.read()
    with open(folder + "/encode.txt", encoding="utf-8", newline="") as f:
        part = f.read()
    lines = text.splitlines(keepends=True)

    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    start = time.perf_counter()
    tok.train_from_iterator(lines, trainer)
    train_s = time.perf_counter() - start
    tok = Tokenizer.from_file(folder + "/tokenizer.json")
    size = len(part.encode())
    start = time.perf_counter()
    tokens = len(tok.encode(part, add_special_tokens=False).ids)
    one = size / 1e6 / (time.perf_counter() - start)
    start = time.perf_counter()
    tok.encode_batch(part.splitlines(keepends=True), add_special_tokens=False)
    batch = size / 1e6 / (time.perf_counter() - start)
    json.dump(
        {"vocab": tok.get_vocab_size(), "train_s": train_s, "encode_mb_s": one, "encode_all_mb_s": batch, "tokens": tokens},
        sys.stdout,
    )


main()
