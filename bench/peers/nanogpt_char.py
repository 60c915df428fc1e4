"""nanoGPT's published CPU configuration: character level, 4 layers, 4 heads, 128
wide, context 64, batch 12, AdamW 1e-3, trained for so many seconds on two
threads, then judged with overlapping windows.

    python nanogpt_char.py TRAIN TEST SECONDS      prints {"bits_per_byte", "steps"}
"""
import json, math, sys, time
import torch, torch.nn as nn, torch.nn.functional as F

torch.set_num_threads(2)
torch.manual_seed(1337)
T, B, C, L, H = 64, 12, 128, 4, 4
train = open(sys.argv[1], encoding="utf-8").read()
test = open(sys.argv[2], encoding="utf-8").read()
seconds = float(sys.argv[3])
chars = sorted(set(train + test))
at = {c: i for i, c in enumerate(chars)}
data = torch.tensor([at[c] for c in train])
held = torch.tensor([at[c] for c in test])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, H, c // H).transpose(1, 2) for y in self.qkv(self.ln1(x)).split(C, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.proj(y)
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(len(chars), C), nn.Embedding(T, C)
        self.blocks = nn.Sequential(*[Block() for _ in range(L)])
        self.ln = nn.LayerNorm(C, bias=False)
        self.apply(lambda m: nn.init.normal_(m.weight, 0, 0.02) if isinstance(m, (nn.Linear, nn.Embedding)) else None)
        for n, p in self.named_parameters():
            if n.endswith("proj.weight") or n.endswith("down.weight"):
                nn.init.normal_(p, 0, 0.02 / math.sqrt(2 * L))

    def forward(self, x):
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        return self.ln(self.blocks(h)) @ self.wte.weight.T


m = GPT()
decay = [p for p in m.parameters() if p.dim() >= 2]
rest = [p for p in m.parameters() if p.dim() < 2]
opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.99))
begin, steps = time.time(), 0
while (now := time.time() - begin) < seconds:
    x = now / seconds
    lr = 1e-3 * min(1, (steps + 1) / 100) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * x)))
    for g in opt.param_groups:
        g["lr"] = lr
    ix = torch.randint(len(data) - T - 1, (B,))
    xb = torch.stack([data[i : i + T] for i in ix])
    yb = torch.stack([data[i + 1 : i + T + 1] for i in ix])
    loss = F.cross_entropy(m(xb).view(-1, len(chars)), yb.view(-1))
    opt.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(m.parameters(), 1.0)
    opt.step()
    steps += 1
m.eval()
nll, scored = 0.0, 1
with torch.no_grad():
    s = 0
    while scored < len(held):
        e = min(s + T, len(held) - 1)
        lp = F.log_softmax(m(held[s:e][None])[0].double(), -1)
        k = scored - s - 1
        nll -= lp[torch.arange(e - s), held[s + 1 : e + 1]][k:].sum().item()
        scored, s = e + 1, s + T // 2
print(json.dumps({"bits_per_byte": nll / math.log(2) / len(test.encode()), "steps": steps, "parameters": sum(p.numel() for p in m.parameters())}))
