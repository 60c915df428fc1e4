"""Data-parallel training steps of PyTorch: DistributedDataParallel over Gloo.

The peer of bench/ddp: one process a rank (RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT), one thread each, the decoder of step_torch.py. Rank 0 prints one
JSON object.
"""

import argparse
import json
import os
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from step_torch import Decoder


def main():
    p = argparse.ArgumentParser()
    for name, default in dict(d=256, layers=4, heads=4, kv=4, ffn=704, T=256, B=8, V=4096).items():
        p.add_argument("-" + name, type=int, default=default)
    p.add_argument("-seconds", type=float, default=5)
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model = Decoder(a)
    if world > 1:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(rank)

    def step():
        ids = torch.randint(a.V, (a.B, a.T + 1), generator=generator)
        loss = F.cross_entropy(model(ids[:, :-1]).view(-1, a.V), ids[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    for _ in range(2):
        step()
    steps, start = 0, time.perf_counter()
    stop = torch.zeros(1)
    while True:
        step()
        steps += 1
        elapsed = time.perf_counter() - start
        # All ranks stop after the same step; every eighth is enough to ask.
        if steps % 8 == 0 or world == 1:
            stop[0] = float(elapsed >= a.seconds)
            if world > 1:
                dist.broadcast(stop, 0)
            if stop.item():
                break
    if rank == 0:
        print(json.dumps({"tokens_per_s": a.B * a.T * steps * world / elapsed, "step_s": elapsed / steps}))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
