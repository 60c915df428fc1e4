"""The judge of TPE: Optuna's own split, groups and Parzen estimators on trials that it
makes up here. Prints the cases and what they come to as JSON; testdata/tpe.json is that."""

import json
import math
import warnings

import numpy as np

warnings.filterwarnings("ignore")
# Where values tie, their order decides which gap is whose; theirs is that of the trials.
unstable = np.argsort
np.argsort = lambda a, axis=-1, kind=None: unstable(a, axis=axis, kind="stable")

import optuna  # noqa: E402
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.samplers import TPESampler  # noqa: E402
from optuna.samplers._tpe.sampler import _split_trials, default_gamma, default_gamma_multiobjective  # noqa: E402
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.ERROR)

DIMS = {
    "x": ("uniform(-5, 5)", FloatDistribution(-5, 5)),
    "lr": ("log_uniform(1e-4, 1)", FloatDistribution(1e-4, 1, log=True)),
    "n": ("int(1, 9)", IntDistribution(1, 9)),
    "wide": ("int(1, 5000)", IntDistribution(1, 5000)),
    "step": ("int(16, 512, 16)", IntDistribution(16, 512, step=16)),
    "width": ("log_int(4, 256)", IntDistribution(4, 256, log=True)),
    "kind": ("categorical([a, b, c])", CategoricalDistribution(["a", "b", "c"])),
    "b_rate": ("log_uniform(0.001, 0.1)", FloatDistribution(0.001, 0.1, log=True)),
    "b_depth": ("int(2, 6)", IntDistribution(2, 6)),
    "c_rate": ("uniform(0, 1)", FloatDistribution(0, 1)),
}
CONDITION = {"b_rate": ("kind", "b"), "b_depth": ("kind", "b"), "c_rate": ("kind", "c")}


def draw(rng, name, centre):
    """A value, half of the time near the middle, so that estimators have narrow kernels."""
    d = DIMS[name][1]
    if isinstance(d, CategoricalDistribution):
        return d.choices[rng.randint(len(d.choices))]
    u = min(max(rng.normal(0.4, 0.05), 0), 1) if centre else rng.rand()
    if d.log:
        v = math.exp(math.log(d.low) + u * (math.log(d.high) - math.log(d.low)))
    else:
        v = d.low + u * (d.high - d.low)
    v = float("%.6g" % v)
    if isinstance(d, IntDistribution):
        v = int(round((v - d.low) / d.step) * d.step + d.low)
    return min(max(v, d.low), d.high)


def config(rng, names):
    centre, c = rng.rand() < 0.5, {}
    for name in names:
        if name not in CONDITION or c[CONDITION[name][0]] == CONDITION[name][1]:
            c[name] = draw(rng, name, centre)
    return c


def case(seed, names, trials, pruned=0.0, infeasible=0.0, running=0):
    rng = np.random.RandomState(seed)
    study = optuna.create_study(sampler=TPESampler(seed=0, multivariate=True, group=True))
    out = {"dims": [[n, DIMS[n][0], *CONDITION.get(n, ("", ""))] for n in names], "trials": []}
    for i in range(trials):
        while (params := config(rng, names)) in (t["config"] for t in out["trials"]):
            pass
        dist = {n: DIMS[n][1] for n in params}
        value, u = float("%.6g" % rng.rand()), rng.rand()
        t = {"config": params, "value": value, "resource": 9, "violation": 0.0, "pending": False}
        if i >= trials - running:
            t["pending"] = True
            frozen = create_trial(params=params, distributions=dist, state=TrialState.RUNNING)
        elif u < pruned:
            t["resource"] = int(1 + rng.randint(3))
            frozen = create_trial(params=params, distributions=dist, state=TrialState.PRUNED,
                                  intermediate_values={t["resource"]: value})
        else:
            frozen = create_trial(params=params, distributions=dist, value=value)
        if not t["pending"] and rng.rand() < infeasible:
            t["violation"] = float("%.6g" % (0.01 + rng.rand()))
            frozen.set_constraint("c", t["violation"])
        study.add_trial(frozen)
        out["trials"].append(t)
    kept = study.get_trials(deepcopy=False)
    for t, got in zip(out["trials"], kept):
        assert (got.state == TrialState.RUNNING) == t["pending"]
        assert sum(got.constraints.values()) == t["violation"]
    finished = sum(t.state != TrialState.RUNNING for t in kept)
    below, above = _split_trials(study, kept, default_gamma(finished))
    out["below"] = [t.number for t in below]
    spaces = _GroupDecomposedSearchSpace(True).calculate(study).search_spaces
    out["groups"] = []
    for space in sorted(spaces, key=lambda s: min(names.index(n) for n in s)):
        space = {n: space[n] for n in sorted(space)}
        l = study.sampler._build_parzen_estimator(study, space, below, handle_below=True)
        g = study.sampler._build_parzen_estimator(study, space, above, handle_below=False)
        points = [draw_group(rng, space) for _ in range(12)]
        internal = {n: np.array([d.to_internal_repr(p[n]) for p in points]) for n, d in space.items()}
        out["groups"].append({"dims": list(space), "points": points,
                              "log_l": l.log_pdf(internal).tolist(), "log_g": g.log_pdf(internal).tolist()})
    return out


def draw_group(rng, space):
    centre = rng.rand() < 0.5
    return {n: draw(rng, n, centre) for n in space}


def objectives(seed, n, trials, infeasible=0.0):
    """The split of several objectives."""
    rng = np.random.RandomState(seed)
    study = optuna.create_study(directions=["minimize"] * n)
    out = {"values": [], "violations": []}
    for _ in range(trials):
        u = rng.rand(n)
        values = [float("%.6g" % v) for v in (1.2 - u / np.linalg.norm(u)) * (1 + 0.2 * rng.randint(3))]
        violation = float("%.6g" % rng.rand()) if rng.rand() < infeasible else 0.0
        study.add_trial(create_trial(values=values, constraints={"c": violation}))
        out["values"].append(values)
        out["violations"].append(violation)
    below, _ = _split_trials(study, study.get_trials(deepcopy=False), default_gamma_multiobjective(trials))
    return {**out, "below": [t.number for t in below]}


flat = ["x", "lr", "n", "wide", "step", "width", "kind"]
tree = ["x", "kind", "lr", "b_rate", "b_depth", "c_rate"]
cases = [
    case(1, flat, 11),
    case(2, flat, 40),
    case(3, flat, 300),
    case(4, flat, 60, pruned=0.7, infeasible=0.3, running=5),
    case(5, flat, 30, infeasible=1.0),
    case(6, tree, 50, running=3),
    case(7, ["n", "kind", "step"], 120),
    case(8, ["x"], 10),
]
fronts = [
    objectives(11, 2, 30),
    objectives(12, 2, 300),
    objectives(13, 3, 60),
    objectives(14, 3, 150, infeasible=0.95),
    objectives(15, 4, 80),
]
print(json.dumps({"optuna": optuna.__version__, "cases": cases, "fronts": fronts}, separators=(",", ":")).replace('{"dims":[[', '\n{"dims":[['))
