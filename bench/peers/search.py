"""A peer of bench/search: another library's optimiser, asked and told over standard input
and output, one JSON object a line.

in   {"peer": "optuna-tpe", "space": [{"name", "kind": "float" | "int" | "ordinal" | "categorical",
      "low", "high", "log", "choices"}, ...], "seed": 0, "trials": 100, "constraints": 0, "objectives": 1}
out  {"peer": "optuna-tpe", "version": "5.0.0"}
in   {"ask": true}
out  {"config": {name: value, ...}}
in   {"tell": 0.5, "violations": [-1.0]}      a list of values for several objectives
out  {"told": 1}

A peer that rations training, with "epochs" in place of "trials" in the first line (and for
Optuna, if wanted, "options" of its sampler and "first", a configuration to begin with):

in   {"next": true}
out  {"trial": "3", "config": {...}}          a new trial, or one known that goes on; {} to wait
in   {"refuse": "3"}                          that configuration is none of the space; Optuna alone
out  {"refused": "3"}
in   {"report": "3", "epoch": 2, "value": 4.5}
out  {"decision": "continue" | "stop" | "pause"}

Values are minimised; a violation above 0 is a constraint missed. Int, ordinal and
categorical choices come back as they were given. What a peer cannot do is an error:
{"error": "..."} and exit 1.
"""

import json
import os
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
# Libraries print what they please: the real standard output is kept apart.
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(message):
    print(json.dumps(message), file=out, flush=True)


class Optuna:
    """An ordinal is an integer, the choice's place."""

    constraints, objectives = True, True

    def __init__(self, job):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        name, seed = job["peer"].removeprefix("optuna-"), job["seed"]
        samplers = {
            "tpe": optuna.samplers.TPESampler,
            "gp": optuna.samplers.GPSampler,
            "cmaes": optuna.samplers.CmaEsSampler,
            "nsga2": optuna.samplers.NSGAIISampler,
            "random": optuna.samplers.RandomSampler,
        }
        self.version, self.ordinals, dist = optuna.__version__, {}, {}
        for d in job["space"]:
            if d["kind"] == "categorical":
                dist[d["name"]] = optuna.distributions.CategoricalDistribution(d["choices"])
            elif d["kind"] == "ordinal":
                self.ordinals[d["name"]] = d["choices"]
                dist[d["name"]] = optuna.distributions.IntDistribution(0, len(d["choices"]) - 1)
            elif d["kind"] == "int":
                dist[d["name"]] = optuna.distributions.IntDistribution(int(d["low"]), int(d["high"]), log=d.get("log", False))
            else:
                dist[d["name"]] = optuna.distributions.FloatDistribution(d["low"], d["high"], log=d.get("log", False))
        self.dist = dist
        directions = ["minimize"] * job.get("objectives", 1)
        self.study = optuna.create_study(sampler=samplers[name](seed=seed, **job.get("options", {})), directions=directions)

    def ask(self):
        self.trial = self.study.ask(self.dist)
        params = self.trial.params
        return {n: self.ordinals[n][v] if n in self.ordinals else v for n, v in params.items()}

    def tell(self, values, violations):
        for i, v in enumerate(violations):
            self.trial.set_constraint(f"c{i}", v)
        self.study.tell(self.trial, values)


class SMAC:
    constraints, objectives = False, False

    def __init__(self, job):
        import importlib.metadata
        from ConfigSpace import CategoricalHyperparameter, ConfigurationSpace, OrdinalHyperparameter
        from ConfigSpace import UniformFloatHyperparameter, UniformIntegerHyperparameter
        from smac import HyperparameterOptimizationFacade, Scenario

        self.version = importlib.metadata.version("smac")
        space = ConfigurationSpace(seed=job["seed"])
        for d in job["space"]:
            if d["kind"] == "categorical":
                space.add(CategoricalHyperparameter(d["name"], d["choices"]))
            elif d["kind"] == "ordinal":
                space.add(OrdinalHyperparameter(d["name"], d["choices"]))
            elif d["kind"] == "int":
                space.add(UniformIntegerHyperparameter(d["name"], int(d["low"]), int(d["high"]), log=d.get("log", False)))
            else:
                space.add(UniformFloatHyperparameter(d["name"], d["low"], d["high"], log=d.get("log", False)))
        self.folder = tempfile.TemporaryDirectory()
        scenario = Scenario(space, deterministic=True, n_trials=job["trials"], seed=job["seed"], output_directory=self.folder.name)
        self.smac = HyperparameterOptimizationFacade(scenario, lambda config, seed=0: 0.0, logging_level=False, overwrite=True)

    def ask(self):
        self.info = self.smac.ask()
        return {n: v.item() if hasattr(v, "item") else v for n, v in dict(self.info.config).items()}

    def tell(self, values, violations):
        from smac.runhistory.dataclasses import TrialValue

        self.smac.tell(self.info, TrialValue(cost=values[0]))


class HEBO:
    """An ordinal is an integer, the choice's place."""

    constraints, objectives = False, False

    def __init__(self, job):
        import importlib.metadata

        import numpy as np
        import torch
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO as Optimiser

        np.random.seed(job["seed"])
        torch.manual_seed(job["seed"])
        self.version, self.ordinals, params = importlib.metadata.version("HEBO"), {}, []
        for d in job["space"]:
            if d["kind"] == "categorical":
                params.append({"name": d["name"], "type": "cat", "categories": d["choices"]})
            elif d["kind"] == "ordinal":
                self.ordinals[d["name"]] = d["choices"]
                params.append({"name": d["name"], "type": "int", "lb": 0, "ub": len(d["choices"]) - 1})
            else:
                kinds = {("float", False): "num", ("float", True): "pow", ("int", False): "int", ("int", True): "pow_int"}
                kind = kinds[d["kind"], bool(d.get("log", False))]
                params.append({"name": d["name"], "type": kind, "lb": d["low"], "ub": d["high"]})
        self.ints = {d["name"] for d in job["space"] if d["kind"] in ("int", "ordinal")}
        self.hebo = Optimiser(DesignSpace().parse(params), scramble_seed=job["seed"])

    def ask(self):
        self.row = self.hebo.suggest(n_suggestions=1)
        config = {}
        for n, v in self.row.iloc[0].to_dict().items():
            v = v.item() if hasattr(v, "item") else v
            v = int(v) if n in self.ints else v
            config[n] = self.ordinals[n][v] if n in self.ordinals else v
        return config

    def tell(self, values, violations):
        import numpy as np

        self.hebo.observe(self.row, np.array([values[:1]], dtype=float))


def config_space_of(job):
    """The space as Syne Tune takes it."""
    from syne_tune import config_space

    space = {}
    for d in job["space"]:
        log = d.get("log", False)
        if d["kind"] == "categorical":
            space[d["name"]] = config_space.choice(d["choices"])
        elif d["kind"] == "ordinal":
            space[d["name"]] = config_space.ordinal(d["choices"], kind="equal")
        elif d["kind"] == "int":
            make = config_space.lograndint if log else config_space.randint
            space[d["name"]] = make(int(d["low"]), int(d["high"]))
        else:
            make = config_space.loguniform if log else config_space.uniform
            space[d["name"]] = make(d["low"], d["high"])
    return space


class SyneTune:
    constraints, objectives = False, False

    def __init__(self, job):
        import numpy as np
        import syne_tune
        from syne_tune.optimizer import baselines
        from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler

        np.random.seed(job["seed"])
        name = job["peer"].removeprefix("syne-")
        makers = {"bore": "BORE", "cqr": "CQR", "tpe": "TPE", "rea": "REA", "botorch": "BOTorch"}
        self.version = syne_tune.__version__
        make = getattr(baselines, makers[name])
        self.scheduler = AskTellScheduler(make(config_space=config_space_of(job), metric="loss", do_minimize=True, random_seed=job["seed"]))

    def ask(self):
        self.trial = self.scheduler.ask()
        return {n: v.item() if hasattr(v, "item") else v for n, v in self.trial.config.items()}

    def tell(self, values, violations):
        self.scheduler.tell(self.trial, {"loss": values[0]})


class OptunaPruned(Optuna):
    """TPE, and a pruner that is asked after each epoch."""

    def __init__(self, job):
        import optuna

        sampler, pruner = job["peer"].removeprefix("optuna-").split("-")
        super().__init__({**job, "peer": f"optuna-{sampler}"})
        self.epochs, self.trials = job["epochs"], {}
        if pruner == "hyperband":
            self.study.pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=self.epochs, reduction_factor=3)
        else:
            self.study.pruner = optuna.pruners.MedianPruner()
        if first := job.get("first"):
            self.study.enqueue_trial({n: self.ordinals[n].index(v) if n in self.ordinals else v for n, v in first.items()})

    def next(self):
        config = self.ask()
        name = str(self.trial.number)
        self.trials[name] = self.trial
        return {"trial": name, "config": config}

    def refuse(self, name):
        import optuna

        self.study.tell(self.trials.pop(name), state=optuna.trial.TrialState.FAIL)

    def report(self, name, epoch, value):
        import optuna

        trial = self.trials[name]
        trial.report(value, epoch)
        if epoch == self.epochs:
            self.study.tell(trial, value)
            return "stop"
        if trial.should_prune():
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return "stop"
        return "continue"


class SyneTuneScheduled(SyneTune):
    """Versions up to 0.14 name their arguments otherwise."""

    def __init__(self, job):
        import numpy as np
        import syne_tune
        from syne_tune.optimizer import baselines

        np.random.seed(job["seed"])
        name = job["peer"].removeprefix("syne-")
        makers = {"asha": "ASHA", "bohb": "BOHB", "ashabore": "ASHABORE", "ashacqr": "ASHACQR", "mobster": "MOBSTER", "hypertune": "HyperTune"}
        self.version, self.epochs, self.trials = syne_tune.__version__, job["epochs"], {}
        make, space = getattr(baselines, makers[name]), config_space_of(job)
        if name in ("mobster", "hypertune"):
            space["epochs"] = self.epochs
            self.scheduler = make(
                space, metric="loss", mode="min", resource_attr="epoch", max_resource_attr="epochs", random_seed=job["seed"], search_options={"debug_log": False}
            )
        else:
            self.scheduler = make(config_space=space, metric="loss", do_minimize=True, time_attr="epoch", max_t=self.epochs, random_seed=job["seed"])

    def next(self):
        import datetime

        from syne_tune.backend.trial_status import Trial

        try:
            s = self.scheduler.suggest()
        except TypeError:
            s = self.scheduler.suggest(len(self.trials))
        if s is None:
            return {}
        if not s.spawn_new_trial_id:
            name = str(s.checkpoint_trial_id)
            if s.config is not None:
                self.trials[name].config = s.config
            return {"trial": name}
        name = str(len(self.trials))
        self.trials[name] = trial = Trial(trial_id=int(name), config=s.config, creation_time=datetime.datetime.now())
        self.scheduler.on_trial_add(trial)
        config = {n: v.item() if hasattr(v, "item") else v for n, v in s.config.items() if n != "epochs"}
        return {"trial": name, "config": config}

    def report(self, name, epoch, value):
        trial, result = self.trials[name], {"loss": value, "epoch": epoch}
        if epoch == self.epochs:
            self.scheduler.on_trial_complete(trial, result)
            return "stop"
        return self.scheduler.on_trial_result(trial, result).lower()


PEERS = {
    **{f"optuna-{n}": Optuna for n in ("tpe", "gp", "cmaes", "nsga2", "random")},
    "smac": SMAC,
    "hebo": HEBO,
    **{f"syne-{n}": SyneTune for n in ("bore", "cqr", "tpe", "rea", "botorch")},
    **{f"optuna-tpe-{n}": OptunaPruned for n in ("hyperband", "median")},
    **{f"syne-{n}": SyneTuneScheduled for n in ("asha", "bohb", "ashabore", "ashacqr", "mobster", "hypertune")},
}


def main():
    job = json.loads(sys.stdin.readline())
    make = PEERS.get(job["peer"])
    if make is None:
        raise ValueError(f"there is no peer {job['peer']!r}; there are {', '.join(PEERS)}")
    if job.get("constraints", 0) and not make.constraints:
        raise ValueError(f"{job['peer']} takes no measured constraints")
    if job.get("objectives", 1) > 1 and not make.objectives:
        raise ValueError(f"{job['peer']} takes one objective")
    peer = make(job)
    say({"peer": job["peer"], "version": peer.version})
    told = 0
    for line in sys.stdin:
        message = json.loads(line)
        if "ask" in message:
            say({"config": peer.ask()})
        elif "next" in message:
            say(peer.next())
        elif "refuse" in message:
            peer.refuse(message["refuse"])
            say({"refused": message["refuse"]})
        elif "report" in message:
            say({"decision": peer.report(message["report"], message["epoch"], message["value"])})
        else:
            values = message["tell"]
            peer.tell(values if isinstance(values, list) else [values], message.get("violations") or [])
            told += 1
            say({"told": told})


try:
    main()
except Exception as error:
    say({"error": f"{type(error).__name__}: {error}"})
    raise
