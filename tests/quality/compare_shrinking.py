"""Modes of shrinking over seeds: `python -m tests.quality.compare_shrinking --seeds 3 [--config FILE]`.

For each seed one base model is trained, and pruned in each mode for the same number of steps. Prints top-1 at the end,
with `train.weight_average_decay` that of the average too; the multiply-adds of all steps, compactors counted, relative
to plain training of the base model; the seconds of it all, tracing and evaluations included; where it shrank.

`--nudges N` prunes N times in each mode, from weights of the base that differ by roundings: how far apart the ends of
one and the same training are.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from pathlib import Path

from resrep_dist.config import Config, load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.costs import training_macs
from resrep_dist.models.building import build_model
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.trainer import Trainer
from tests.networks import sources_of

import numpy as np
import tensorflow as tf
from tensorflow import keras

DIGITS = Path(__file__).parents[2] / "configs" / "digits_resnet20.yaml"
EVALUATION_BATCH_SIZE = 500
INTERVAL_STEPS = 10


def prune(base: keras.Model, mode: str, config: Config, data: tuple, cluster: Cluster) -> dict[str, float]:
    shrink = dataclasses.replace(config.shrink, mode=mode)
    prune_config = dataclasses.replace(config.prune, max_extension_epochs=0.0)
    config = dataclasses.replace(config, shrink=shrink, prune=prune_config)
    graph = trace(base)
    base_macs = graph.macs.total(graph.widths)
    trainer = Trainer(base, graph, config, *data, cluster=cluster)
    trainer.start()
    model, cost, seconds, shrink_steps = trainer.model, 0.0, 0.0, list[int]()
    while trainer.step < trainer.num_steps:
        of_step = training_macs(trainer.model, graph, trainer.state.channels)
        first_step, start = trainer.step, time.perf_counter()
        trainer.train_until(min(trainer.step + INTERVAL_STEPS, trainer.num_steps))
        cost += of_step * (trainer.step - first_step)
        seconds += time.perf_counter() - start
        if trainer.model is not model:
            model = trainer.model
            shrink_steps.append(trainer.step)
    is_averaged = trainer.evaluated_model is not trainer.model
    of_weights = Evaluator(trainer.model).top1(data[1], EVALUATION_BATCH_SIZE)
    of_average = {"top1_of_average": Evaluator(trainer.evaluated_model).top1(data[1], EVALUATION_BATCH_SIZE)}
    merged = trainer.state.early_merge or {}
    return {
        "top1": of_weights,
        **(of_average if is_averaged else {}),
        "macs_vs_plain": cost / (base_macs * trainer.num_steps),
        "seconds": seconds,
        "last_shrink_step": max(shrink_steps, default=0),
        "num_shrinks": len(shrink_steps),
        "merge_step": merged["step"] if "certificate" in merged else -1,
        "num_masked_alive": trainer.pruner.num_masked_alive() if trainer.pruner else 0,
    }


def nudged(model: keras.Model, seed: int) -> keras.Model:
    """A copy whose weights are changed by about one rounding of float32, up or down at random."""
    random = np.random.default_rng(seed)
    copy = keras.models.clone_model(model)
    copy.set_weights([w * (1 + random.choice([-1e-7, 1e-7], w.shape)).astype(w.dtype) for w in model.get_weights()])
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=DIGITS, help="default: the demo's")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", default=["off", "exact", "merge"])
    parser.add_argument(
        "--nudges", type=int, default=0, help="runs in each mode from nudged weights (default: one run)"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as in train.num_epochs=50")
    options = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    cluster = Cluster()
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in options.modes}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        keras.utils.set_random_seed(seed)
        config = load_config(options.config, [*options.overrides, f"seed={seed}"])
        data = sources_of(config)
        base = Trainer(build_model(config.model), None, config, *data, cluster=cluster)
        base.start()
        base.train_until(base.num_steps)
        print(f"seed {seed} base top-1 {Evaluator(base.model).top1(data[1], EVALUATION_BATCH_SIZE):.2f}", flush=True)
        models = [nudged(base.model, number) for number in range(options.nudges)] or [base.model]
        for model, (mode, rows) in itertools.product(models, results.items()):
            rows.append(prune(model, mode, config, data, cluster))
            figures = ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items())
            print(f"seed {seed} {mode}: {figures}", flush=True)
    for mode, rows in results.items():
        medians = ", ".join(f"{name} {statistics.median(row[name] for row in rows):.4g}" for name in rows[0])
        print(f"median {mode}: {medians}")


if __name__ == "__main__":
    main()
