"""The rules `radial` and `paper` on the digits, over seeds: `python -m tests.quality.compare_rules --seeds 5`.

For each seed one base model is trained and pruned by both rules. Prints top-1 of the base, of the pruned
model, and of the pruned model with its masked rows removed; the first step after which every masked row is
dead for good (zero; for the paper's rule below its threshold); the largest change of a logit by the removal.
"""

import argparse
import statistics
from pathlib import Path

from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of
from resrep_dist.merging import logits
from resrep_dist.models.building import build_model
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.trainer import Trainer
from tests.networks import sources_of

import numpy as np
import tensorflow as tf
from tensorflow import keras

CONFIG = Path(__file__).parents[2] / "configs" / "digits_resnet20.yaml"


def prune(base: keras.Model, rule: str, seed: int, cluster: Cluster) -> dict[str, float]:
    config = load_config(CONFIG, [f"seed={seed}", f"prune.rule={rule}", "prune.max_extension_epochs=0"])
    train_data, validation_data = sources_of(config)
    trainer = Trainer(base, trace(base), config, train_data, validation_data, cluster=cluster)
    trainer.start()
    death_step = None
    for step in range(20, trainer.num_steps + 20, 20):
        trainer.train_until(min(step, trainer.num_steps))
        masked = sum(trainer.graph.widths) - sum(trainer.pruner.unmasked_widths())
        is_dead = masked > 0 and trainer.pruner.num_masked_alive() == 0
        death_step = (death_step or step) if is_dead else None
    images = validation_data.first_images(len(validation_data))
    before = logits(trainer.model, images)
    top1 = Evaluator(trainer.model).top1(validation_data, 360)
    num_alive = trainer.pruner.num_masked_alive()
    for compactor in compactors_of(trainer.model, trainer.graph):
        compactor.kernel.assign(compactor.kernel * compactor.mask)
    return {
        "top1": top1,
        "top1_removed": Evaluator(trainer.model).top1(validation_data, 360),
        "num_masked": masked,
        "num_masked_alive": num_alive,
        "all_dead_step": death_step if death_step is not None else float("nan"),
        "logit_change": float(np.abs(logits(trainer.model, images) - before).max()),
        "macs_fraction": trainer.pruner.macs_fraction(trainer.pruner.unmasked_widths()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    cluster = Cluster()
    results: dict[str, list[dict[str, float]]] = {"radial": [], "paper": []}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        keras.utils.set_random_seed(seed)
        config = load_config(CONFIG, [f"seed={seed}"])
        train_data, validation_data = sources_of(config)
        model = build_model(config.model)
        base = Trainer(model, None, config, train_data, validation_data, cluster=cluster)
        base.start()
        base.train_until(base.num_steps)
        print(f"seed {seed} base top-1 {Evaluator(base.model).top1(validation_data, 360):.2f}", flush=True)
        for rule, rows in results.items():
            rows.append(prune(base.model, rule, seed, cluster))
            figures = ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items())
            print(f"seed {seed} {rule}: {figures}", flush=True)
    for rule, rows in results.items():
        medians = ", ".join(f"{name} {statistics.median(row[name] for row in rows):.4g}" for name in rows[0])
        print(f"median {rule}: {medians}")


if __name__ == "__main__":
    main()
