"""Peer of bench/cluster: Ray Tune runs trials that do nothing and report once.
Usage: noop_ray.py TRIALS SLOTS. Actors are used again for the next trial, of
which so many run side by side. Prints one JSON object; ray's start is not
counted."""

import json
import os
import sys
import tempfile
import time

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")

import ray
from ray import tune


class Noop(tune.Trainable):
    def setup(self, config):
        pass

    def step(self):
        return {"score": self.config["lr"], "done": True}

    def reset_config(self, config):
        return True

    def save_checkpoint(self, folder):
        return None

    def load_checkpoint(self, state):
        pass


def main():
    trials, slots = int(sys.argv[1]), int(sys.argv[2])
    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            Noop,
            param_space={"lr": tune.loguniform(1e-5, 1e-2)},
            tune_config=tune.TuneConfig(metric="score", mode="min", num_samples=trials, max_concurrent_trials=slots, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        start = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - start
    if len(results) != trials or results.errors:
        raise SystemExit(f"{len(results)} of {trials} trials, {len(results.errors)} failed")
    print(json.dumps({"trials": trials, "seconds": seconds, "trials_per_s": trials / seconds, "ray": ray.__version__}))


if __name__ == "__main__":
    main()
