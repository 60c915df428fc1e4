"""Logits of transformers' LlamaForCausalLM and some steps of AdamW on one batch.

Reads one JSON object from standard input: the shape, the parameters by name
(flat lists), inputs and targets, the number of steps; writes {"logits": [...],
"losses": [...], "norms": [...], "grads": {name: [...]}}, the gradients those of the
first step.
"""

import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

job = json.load(sys.stdin)
a = job["arch"]
torch.manual_seed(0)
torch.set_num_threads(1)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=a["vocab"], hidden_size=a["dim"], num_hidden_layers=a["layers"],
    num_attention_heads=a["heads"], num_key_value_heads=a["kv_heads"],
    intermediate_size=a["ffn"], max_position_embeddings=a["context"],
    tie_word_embeddings=a["tied"], rope_theta=a["rope_theta"], rms_norm_eps=a["norm_eps"],
    head_dim=a.get("head") or a["dim"] // a["heads"], attention_bias=False, mlp_bias=False,
)).float()
state = model.state_dict()
with torch.no_grad():
    for name, values in job["params"].items():
        state[name].copy_(torch.tensor(values).view(state[name].shape))
x = torch.tensor(job["inputs"]).view(-1, job["T"])
y = torch.tensor(job["targets"]).view(-1, job["T"])
with torch.no_grad():
    logits = model(x).logits.flatten().tolist()

decay = [p for p in model.parameters() if p.dim() == 2]
rest = [p for p in model.parameters() if p.dim() != 2]
optimizer = torch.optim.AdamW(
    [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
    lr=3e-3, betas=(0.9, 0.95), eps=1e-8,
)
losses, norms, grads = [], [], {}
for step in range(job["steps"]):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), ignore_index=-1)
    loss.backward()
    if step == 0:
        grads = {name: p.grad.flatten().tolist() for name, p in model.named_parameters()}
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
    optimizer.step()
    losses.append(loss.item())
json.dump({"logits": logits, "losses": losses, "norms": norms, "grads": grads}, sys.stdout)
