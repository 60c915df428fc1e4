"""Logits, loss and gradients of transformers' LlamaForCausalLM.

Reads one JSON object from standard input: the shape, the parameters by name
(flat lists), inputs and targets; writes {"logits": [...], "loss": x, "grads":
{name: [...]}}.
"""

import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

job = json.load(sys.stdin)
a = job["arch"]
torch.set_num_threads(1)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=a["vocab"], hidden_size=a["dim"], num_hidden_layers=a["layers"],
    num_attention_heads=a["heads"], num_key_value_heads=a["kv_heads"],
    intermediate_size=a["ffn"], max_position_embeddings=a["context"],
    tie_word_embeddings=a["tied"], rope_theta=a["rope_theta"], rms_norm_eps=a["norm_eps"],
    attention_bias=False, mlp_bias=False,
)).float()
state = model.state_dict()
with torch.no_grad():
    for name, values in job["params"].items():
        state[name].copy_(torch.tensor(values).view(state[name].shape))
x = torch.tensor(job["inputs"]).view(-1, job["T"])
y = torch.tensor(job["targets"]).view(-1, job["T"])
logits = model(x).logits
loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)
loss.backward()
json.dump({
    "logits": logits.detach().flatten().tolist(),
    "loss": loss.item(),
    "grads": {name: p.grad.flatten().tolist() for name, p in model.named_parameters()},
}, sys.stdout)
