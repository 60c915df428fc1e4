"""Whole training steps of PyTorch (fused AdamW) on one shape.

-mode is eager (float32), bf16 (eager under autocast), compile (float32, by
torch.compile) or compile-bf16 (both).

The peer of bench/step: the same decoder (RMSNorm, half-split rotary embedding,
grouped-query attention, SwiGLU, tied output projection), the same learnable
sequences, initial values of the same distribution, clipping at 1, decay of
matrices alone. Prints one JSON object; with -serve one when it is ready and one
for every line of standard input, a number of seconds to train.
"""

import argparse
import json
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, c, heads, kv, ffn):
        super().__init__()
        self.heads, self.kv, self.d = heads, kv, c // heads
        self.n1, self.n2 = nn.RMSNorm(c, eps=1e-5), nn.RMSNorm(c, eps=1e-5)
        self.qkv = nn.Linear(c, (heads + 2 * kv) * self.d, bias=False)
        self.o = nn.Linear(c, c, bias=False)
        self.glu = nn.Linear(c, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, c, bias=False)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        qkv = self.qkv(self.n1(x)).view(b, t, self.heads + 2 * self.kv, self.d).transpose(1, 2)
        qk, v = qkv[:, : self.heads + self.kv], qkv[:, self.heads + self.kv :]
        half = self.d // 2
        rotated = torch.cat((-qk[..., half:], qk[..., :half]), -1)
        qk = qk * cos + rotated * sin
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, c))
        gate, up = self.glu(self.n2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embed = nn.Embedding(a.V, a.d)
        self.blocks = nn.ModuleList(Block(a.d, a.heads, a.kv, a.ffn) for _ in range(a.layers))
        self.norm = nn.RMSNorm(a.d, eps=1e-5)
        dim = a.d // a.heads
        freq = 1 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
        angle = torch.outer(torch.arange(a.T).float(), freq)
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.55 / math.sqrt(p.shape[1])
                if name.endswith((".o.weight", ".down.weight")):
                    std /= math.sqrt(2 * a.layers)
                nn.init.normal_(p, 0, std)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embed.weight)


def main():
    p = argparse.ArgumentParser()
    for name, default in dict(d=128, layers=4, heads=4, kv=4, ffn=352, T=128, B=16, V=512, threads=1).items():
        p.add_argument("-" + name, type=int, default=default)
    p.add_argument("-seconds", type=float, default=5)
    p.add_argument("-mode", choices=["eager", "bf16", "compile", "compile-bf16"], default="eager")
    p.add_argument("-loss-steps", dest="loss_steps", type=int, default=0, help="train this many steps first and report the mean loss of the last ten")
    p.add_argument("-serve", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    model = Decoder(a)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    position = torch.arange(a.T + 1)
    state = 1

    def batch():
        # Sequences that count up from a random start by a random stride of 1 to 4.
        nonlocal state
        rows = []
        for _ in range(a.B):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            rows.append(((state >> 33) % a.V + position * (1 + (state >> 20) % 4)) % a.V)
        ids = torch.stack(rows)
        return ids[:, :-1], ids[:, 1:]

    def forward(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in a.mode):
            return F.cross_entropy(model(x).view(-1, a.V), y.reshape(-1))

    if "compile" in a.mode:
        forward = torch.compile(forward, dynamic=False)

    def step():
        x, y = batch()
        loss = forward(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.item()

    losses = [step()]
    if "compile" in a.mode:
        losses.append(step())
    while len(losses) < a.loss_steps:
        losses.append(step())
    tail = losses[-min(10, len(losses)):] if a.loss_steps else []

    def measure(seconds):
        steps, start, cpu = 0, time.perf_counter(), time.process_time()
        while True:
            last = step()
            steps += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                break
        return {
            "tokens_per_s": a.B * a.T * steps / elapsed,
            "tokens_per_cpu_s": a.B * a.T * steps / (time.process_time() - cpu),
            "loss_last": last,
            "steps": steps,
        }

    about = {
        "mode": a.mode,
        "loss_first": losses[0],
        "loss_mean": sum(tail) / len(tail) if tail else 0,
        "threads": a.threads,
        "params": sum(p.numel() for p in model.parameters()),
    }
    if not a.serve:
        print(json.dumps(about | measure(a.seconds)))
        return
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), flush=True)


if __name__ == "__main__":
    main()
