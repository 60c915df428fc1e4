"""Generates with transformers in float32, for bench/serve.

python serve_hf.py BUNDLE

Prints {"threads": 1} once it has loaded the bundle. Then for each line of standard input,
{"texts": N, "prompt": N, "tokens": N, "threads": N, "seed": N}, it generates as many texts
at once from random prompts, greedily, and prints seconds of the clock and of the processor:
{"first": until the first token, "first_cpu": …, "decode": from there on, "decode_cpu": …}.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """The times at which tokens come; the prompt comes first."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append((time.perf_counter(), time.process_time()))

    def end(self):
        pass


def generate(model, question):
    torch.set_num_threads(question["threads"])
    g = torch.Generator().manual_seed(question["seed"])
    ids = torch.randint(3, model.config.vocab_size, (question["texts"], question["prompt"]), generator=g)
    clock = Clock()
    begin = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, streamer=clock, max_new_tokens=question["tokens"] + 1)
    first, last = clock.times[1], clock.times[-1]
    assert len(clock.times) == question["tokens"] + 2, "the text ended early"
    return {
        "first": first[0] - begin[0], "first_cpu": first[1] - begin[1],
        "decode": last[0] - first[0], "decode_cpu": last[1] - first[1],
    }


def main():
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(generate(model, json.loads(line))), flush=True)


main()
