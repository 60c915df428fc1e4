"""The peer of bench/allreduce: torch.distributed's Gloo, all_reduce in place, float
sums. Rank 0 prints a line "bytes seconds" for each size, the median of the blocks.
RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say who is who.

usage: allreduce_gloo.py SECONDS BYTES...
"""

import sys
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
budget = float(sys.argv[1])


def agreed(value):
    t = torch.tensor([float(value)], dtype=torch.float64)
    dist.broadcast(t, 0)
    return t.item()


for bytes_ in map(int, sys.argv[2:]):
    buf = torch.zeros(bytes_ // 4)
    began, warm, spent = time.perf_counter(), 0, 0.0
    while warm < 3 or spent < budget / 5:
        dist.all_reduce(buf)
        warm += 1
        spent = agreed(time.perf_counter() - began)
    block = int(agreed(max(1, int(budget / 15 / (spent / warm)))))
    times, began = [], time.perf_counter()
    while len(times) < 15:
        dist.barrier()
        t = time.perf_counter()
        for _ in range(block):
            dist.all_reduce(buf)
        times.append((time.perf_counter() - t) / block)
        if agreed(len(times) >= 5 and time.perf_counter() - began > 2 * budget):
            break
    if rank == 0:
        print(bytes_, sorted(times)[len(times) // 2], flush=True)
dist.destroy_process_group()
