"""Hugging Face's logits processors, for comparison. Standard input: a list of
{"logits", "seen", "penalty", "temperature", "top_k", "top_p", "min_p"};
standard output: the list of probability vectors."""

import json
import sys

import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def probabilities(c):
    ids = torch.tensor([c["seen"]], dtype=torch.long)
    scores = torch.tensor([c["logits"]], dtype=torch.float32)
    if c["penalty"] not in (0, 1):
        scores = RepetitionPenaltyLogitsProcessor(c["penalty"])(ids, scores)
    scores = TemperatureLogitsWarper(float(c["temperature"]))(ids, scores)
    if c["top_k"]:
        scores = TopKLogitsWarper(c["top_k"])(ids, scores)
    if 0 < c["top_p"] < 1:
        scores = TopPLogitsWarper(c["top_p"])(ids, scores)
    if c["min_p"]:
        scores = MinPLogitsWarper(c["min_p"])(ids, scores)
    return torch.softmax(scores.double(), -1)[0].tolist()


json.dump([probabilities(c) for c in json.load(sys.stdin)], sys.stdout)
