"""The bundle's judge: transformers.

bundle_hf.py load   standard input {"dirs": [...], "prompts": [...], "new": N}: loads each folder
                    and prints a list of {"ids", "logits" of the last position, "new_ids" and
                    "texts" (N greedy tokens; special ones left out of the text), "chat",
                    "special", "missing"} as JSON
bundle_hf.py make   standard input [{"dir", "tokenizer": path, "vocab", "hidden", "layers", "heads",
                    "kv_heads", "ffn", "context", "tied", "dtype", "shard": "10KB" or absent,
                    "theta", "extra": {...}}, ...]: saves a random Llama each with save_pretrained
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def load(folder, job):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    model.eval()
    out = {
        "ids": [],
        "logits": [],
        "texts": [],
        "new_ids": [],
        "missing": sorted(str(k) for k in info["missing_keys"]) + sorted(str(k) for k in info["unexpected_keys"]),
        "special": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token],
        "chat": None,
    }
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "hello"}]
        out["chat"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    with torch.no_grad():
        for prompt in job["prompts"]:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            out["ids"].append(ids[0].tolist())
            out["logits"].append(model(ids).logits[0, -1].tolist())
            if job["new"]:
                got = model.generate(ids, max_new_tokens=job["new"], do_sample=False, temperature=None, top_k=None, top_p=None)
                new = got[0, ids.shape[1] :].tolist()
                out["new_ids"].append(new)
                out["texts"].append(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return out


def make(job):
    folder = job["dir"]
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=job["vocab"],
        hidden_size=job["hidden"],
        intermediate_size=job["ffn"],
        num_hidden_layers=job["layers"],
        num_attention_heads=job["heads"],
        num_key_value_heads=job["kv_heads"],
        max_position_embeddings=job["context"],
        tie_word_embeddings=job["tied"],
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": job["theta"]},
        **(job.get("extra") or {}),
    )
    model = LlamaForCausalLM(config).to(getattr(torch, job["dtype"]))
    options = {"max_shard_size": job["shard"]} if job.get("shard") else {}
    model.save_pretrained(folder, **options)
    PreTrainedTokenizerFast(
        tokenizer_file=job["tokenizer"], bos_token="<|bos|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    ).save_pretrained(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.load(sys.stdin)
    if sys.argv[1] == "load":
        result = [load(folder, job) for folder in job["dirs"]]
    else:
        result = [make(model) for model in job]
    json.dump(result, sys.stdout)
