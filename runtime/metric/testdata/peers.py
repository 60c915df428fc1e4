"""sacrebleu, rouge-score and scikit-learn on the same answers. Standard input: a list of
{"answers": [{"got", "want"}], "classes": [[got, want]], "words": [[got words, want words]]},
where classes and words are folded already; standard output: the scores of each by name.
With the argument temperature: {"logits", "targets"}, and the temperature of the least loss."""

import json
import sys

import numpy as np


def temperature(c):
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    z, t = np.array(c["logits"]), np.array(c["targets"])
    nll = lambda log_t: -log_softmax(z / np.exp(log_t), -1)[np.arange(len(t)), t].mean()
    best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    p = np.exp(log_softmax(z / np.exp(best.x), -1))
    conf, right = p.max(-1), p.argmax(-1) == t
    ece = sum(
        abs((conf[in_bin] - right[in_bin]).sum())
        for lo in range(15)
        for in_bin in [(conf > lo / 15) & (conf <= (lo + 1) / 15)]
    ) / len(t)
    return {"temperature": float(np.exp(best.x)), "nll": float(best.fun), "ece": float(ece)}


class Given:
    """A tokenizer of words that come with a NUL between."""

    def tokenize(self, text):
        return [w for w in text.split("\0") if w]


def scores(c):
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    got, want = [g for g, _ in c["classes"]], [w for _, w in c["classes"]]
    out = {"accuracy": accuracy_score(want, got)}
    for mean in ("macro", "micro"):
        p, r, f, _ = precision_recall_fscore_support(want, got, average=mean, zero_division=0)
        out |= {f"precision_{mean}": p, f"recall_{mean}": r, f"f1_{mean}": f}
    kinds = ["rouge1", "rouge2", "rougeL"]
    given = RougeScorer(kinds, tokenizer=Given())
    own = RougeScorer(kinds)
    for kind in kinds:
        name = kind.lower().replace("rouge", "rouge_")
        out[name] = np.mean([given.score("\0".join(w), "\0".join(g))[kind].fmeasure for g, w in c["words"]])
        if all((a["got"] + a["want"]).isascii() for a in c["answers"]):
            mean = np.mean([own.score(a["want"], a["got"])[kind].fmeasure for a in c["answers"]])
            assert abs(mean - out[name]) < 1e-12, (kind, mean, out[name])
    bleu = sacrebleu.corpus_bleu([a["got"] for a in c["answers"]], [[a["want"] for a in c["answers"]]])
    out["bleu"] = bleu.score / 100
    out["exact_match"] = np.mean([a["got"].strip() == a["want"].strip() for a in c["answers"]])
    return {k: float(v) for k, v in out.items()}


if sys.argv[1:] == ["temperature"]:
    json.dump(temperature(json.load(sys.stdin)), sys.stdout)
else:
    json.dump([scores(c) for c in json.load(sys.stdin)], sys.stdout)
