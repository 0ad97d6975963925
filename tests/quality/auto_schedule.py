"""A schedule that nobody set, on five data sizes, two models, three seeds: `python -m tests.quality.auto_schedule`.

For each of these 30 one base model is trained on a part of the digits, and pruned twice for the same number of steps:
with no key of `prune` but the target, and with settings that were tuned by hand. Both are judged at
the planned end of the phase, without an extension. Then each model is pruned in phases of several lengths, also too
short ones. What is finished stands in `auto_schedule.json` and is not done again; the tables are written beside it, to
`auto_schedule.md`, after each run. About a minute each on one core; `taskset -c 0` keeps it to that.
"""

import argparse
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, build_config
from resrep_dist.data.digits import digits
from resrep_dist.data.source import Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.merging import merge
from resrep_dist.models.building_blocks import batch_norm, convolution, depthwise_convolution, relu
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.trainer import Trainer

import numpy as np
from tensorflow import keras

TARGET = 0.47
IMAGE_SIZE = 16
BASE_STEPS = 300
LEARNING_RATE = 0.02  # of the demo's pruning
# Images, steps of the pruning, batch size.
SIZES = ((100, 500, 32), (250, 600, 32), (500, 700, 32), (1000, 800, 64), (1437, 943, 64))
LENGTHS_STEPS = (40, 80, 160, 320, 640)
SEEDS = (0, 1, 2)
# Tuned by hand on 1,437 images with a ResNet-20.
HAND = {"lasso_strength": 2.5e-3, "mask_interval_steps": 10, "channels_per_update": 15}
HAND_START_STEPS = 56


def separable(image_size: int, num_classes: int) -> keras.Model:
    """A small MobileNet: five separable blocks, groups of a pointwise and a depthwise convolution."""
    inputs = keras.Input([image_size, image_size, 3])
    x = relu(batch_norm(convolution(inputs, 16, 3, name="stem"), "stem_bn"), "stem_relu")
    for block, (width, stride) in enumerate(((32, 1), (64, 2), (64, 1), (96, 2), (96, 1)), start=1):
        name = f"block{block}"
        x = depthwise_convolution(x, 3, stride, name=f"{name}_depthwise")
        x = relu(batch_norm(x, f"{name}_depthwise_bn"), f"{name}_depthwise_relu")
        x = relu(batch_norm(convolution(x, width, 1, name=f"{name}_pointwise"), f"{name}_bn"), f"{name}_relu")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name="separable")


MODELS = {"resnet8": lambda size, classes: cifar_resnet(8, size, classes), "separable": separable}


def config_of(seed: int, num_images: int, batch_size: int, num_steps: int, prune: dict[str, Any]) -> Config:
    steps_per_epoch = num_images / batch_size
    never = {"interval_steps": 10_000, "evaluation_epochs": 10_000.0}
    document = {
        "model": {"name": "resnet20", "num_classes": 10, "image_size": IMAGE_SIZE},
        "data": {"source": "digits", "global_batch_size": batch_size, "augmentation": "shift"},
        "base": {
            "num_epochs": BASE_STEPS / steps_per_epoch,
            "learning_rate": 0.1,
            "warmup_epochs": 30 / steps_per_epoch,
        },
        "train": {"num_epochs": num_steps / steps_per_epoch, "learning_rate": LEARNING_RATE},
        "prune": {"target_macs_fraction": TARGET, **prune},
        "logging": never,
        "seed": seed,
    }
    return build_config(document, "tests/quality/auto_schedule.py")


def train_base(name: str, config: Config, data: tuple[Source, Source], cluster: Cluster) -> keras.Model:
    trainer = Trainer(MODELS[name](IMAGE_SIZE, 10), None, config, *data, cluster=cluster, console=None)
    trainer.start()
    trainer.train_until(trainer.num_steps)
    return trainer.model


def prune(base: keras.Model, config: Config, data: tuple[Source, Source], cluster: Cluster) -> dict[str, Any]:
    """Prune to the planned end of the phase and merge; the step at which the last masked row died is kept, too."""
    graph = trace(base)
    trainer = Trainer(base, graph, config, *data, cluster=cluster, console=None)
    trainer.start()
    death_step = None
    for step in range(10, trainer.num_steps + 10, 10):
        trainer.train_until(min(step, trainer.num_steps))
        is_masked = trainer.pruner.unmasked_widths() != graph.widths
        is_dead = is_masked and trainer.pruner.num_masked_alive() == 0
        death_step = (death_step or trainer.step) if is_dead else None
    slim, certificate = merge(trainer.model, graph, data[1].first_images(256))
    slim_graph = trace(slim)
    return {
        "num_steps": trainer.num_steps,
        "macs_fraction_by_mask": trainer.pruner.macs_fraction(trainer.pruner.unmasked_widths()),
        "num_masked_alive": trainer.pruner.num_masked_alive(),
        "death_step": death_step,
        "slim_macs_fraction": slim_graph.macs.total(slim_graph.widths) / graph.macs.total(graph.widths),
        "slim_top1": Evaluator(slim).top1(data[1], 360),
        "logit_difference": certificate.max_relative_difference,
        "settings": {name: getattr(trainer.config.prune, name) for name in (*HAND, "mask_start_epochs")},
    }


def runs() -> Iterator[dict[str, Any]]:
    """What is to be done, the comparison first."""
    for seed in SEEDS:
        for num_images, num_steps, batch_size in SIZES:
            for name in MODELS:
                yield {
                    "kind": "sizes", "model": name, "seed": seed, "num_images": num_images, "batch_size": batch_size,
                    "lengths": [num_steps],
                }  # fmt: skip
    for seed in SEEDS:
        for name in MODELS:
            yield {
                "kind": "lengths", "model": name, "seed": seed, "num_images": 1437, "batch_size": 64,
                "lengths": list(LENGTHS_STEPS),
            }  # fmt: skip


def do(run: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    start, seed, num_images, batch_size = time.monotonic(), run["seed"], run["num_images"], run["batch_size"]
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    train_data, validation_data = digits(IMAGE_SIZE)
    chosen = np.random.default_rng(seed).permutation(len(train_data))[:num_images]
    data = Source(train_data.images[chosen], train_data.labels[chosen], 10), validation_data
    configs = [config_of(seed, num_images, batch_size, length, {}) for length in run["lengths"]]
    base = train_base(run["model"], configs[0], data, cluster)
    result = {**run, "base_top1": Evaluator(base).top1(validation_data, 360)}
    result["auto"] = [prune(base, config, data, cluster) for config in configs]
    if run["kind"] == "sizes":
        hand = {**HAND, "mask_start_epochs": HAND_START_STEPS * batch_size / num_images}
        by_hand = config_of(seed, num_images, batch_size, run["lengths"][0], hand)
        result["hand"] = [prune(base, by_hand, data, cluster)]
    result["seconds"] = round(time.monotonic() - start)
    gc.collect()
    return result


def is_met(pruned: dict[str, Any]) -> bool:
    return pruned["macs_fraction_by_mask"] <= TARGET


def describe(result: dict[str, Any]) -> list[str]:
    """One line for each pruned model."""
    lines = []
    for arm in ("auto", "hand"):
        for pruned in result.get(arm, ()):
            lines.append(
                f"{result['model']} seed {result['seed']} {result['num_images']:,} images {pruned['num_steps']} steps "
                f"{arm}: masks {'met' if is_met(pruned) else 'MISSED'} ({100 * pruned['macs_fraction_by_mask']:.1f} %),"
                f" {pruned['num_masked_alive']} masked rows alive, last death at step {pruned['death_step']}, "
                f"top-1 base {result['base_top1']:.2f} slim {pruned['slim_top1']:.2f}"
            )
    return [*lines, f"  ({result['seconds']} s)"]


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    sizes = [result for result in results if result["kind"] == "sizes"]
    lengths = [result for result in results if result["kind"] == "lengths"]
    num_planned = len(list(runs()))
    lines = [
        "# A schedule that nobody set",
        "",
        f"Written by `python -m tests.quality.auto_schedule`, {len(results)} of {num_planned} runs finished. Digits at "
        f"{IMAGE_SIZE} px and parts of them, {BASE_STEPS} steps of base training, target {TARGET:.0%}, peak rate "
        f"{LEARNING_RATE:g}; top-1 on the same 360 validation images (one image is 0.28 points).",
        "",
        "- auto: no key of `prune` given but `target_macs_fraction`.",
        "- hand: settings tuned by hand on 1,437 images with a ResNet-20, masks from the same step on.",
        "- masks met, all dead: runs in which the masks reach the target, and in which no masked row is alive, at the",
        "  planned end of the phase, without an extension.",
        "",
    ]
    if sizes:
        lines += _size_table(sizes)
    if lengths:
        lines += _length_table(lengths)
    return "\n".join(lines)


def _size_table(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## Five sizes",
        "",
        "| model | images | steps | runs | auto: masks met | all dead | hand: masks met | all dead "
        "| top-1 base | slim, auto | slim, hand |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for num_images, num_steps, _ in SIZES:
            rows = [result for result in results if (result["model"], result["num_images"]) == (name, num_images)]
            if rows:
                cells = [cell for arm in ("auto", "hand") for cell in _counts([row[arm][0] for row in rows])]
                top1 = [[row["base_top1"] for row in rows]]
                top1 += [[row[arm][0]["slim_top1"] for row in rows] for arm in ("auto", "hand")]
                cells += [f"{statistics.mean(values):.2f}" for values in top1]
                lines.append(f"| {name} | {num_images:,} | {num_steps} | {len(rows)} | {' | '.join(cells)} |")
    auto, hand = ([row[arm][0] for row in results] for arm in ("auto", "hand"))
    met, dead = _counts(auto)
    pairs = list(zip(auto, hand, strict=True))
    return [
        *lines,
        "",
        f"auto, of {len(results)} runs: masks met in {met}, all masked rows dead in {dead}.",
        "",
        f"Top-1, auto minus hand, all runs: {_differences(pairs)}",
        "",
        "Where hand has the target and all its masked rows are dead too, so that both models are of one size: "
        f"{_differences([(a, h) for a, h in pairs if is_met(h) and h['num_masked_alive'] == 0])}",
        "",
    ]


def _differences(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    if len(pairs) < 2:
        return f"{len(pairs)} pairs."
    values = [one["slim_top1"] - other["slim_top1"] for one, other in pairs]
    error = statistics.stdev(values) / math.sqrt(len(values))
    return (
        f"{len(values)} pairs, mean {statistics.mean(values):+.2f} points, standard error {error:.2f}, median "
        f"{statistics.median(values):+.2f}, from {min(values):+.2f} to {max(values):+.2f}."
    )


def _counts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [str(sum(map(is_met, rows))), str(sum(row["num_masked_alive"] == 0 and is_met(row) for row in rows))]


def _length_table(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## Lengths of the phase",
        "",
        "1,437 images, 22.5 steps an epoch; mean over seeds. Left: part of the phase after the last masked row died.",
        "",
        "| model | steps | runs | masks met | all dead | left | top-1 base | slim, auto | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        of_model = [result for result in results if result["model"] == name]
        for index, num_steps in enumerate(LENGTHS_STEPS if of_model else ()):
            rows = [result["auto"][index] for result in of_model]
            base = statistics.mean(result["base_top1"] for result in of_model)
            slim = statistics.mean(row["slim_top1"] for row in rows)
            left = statistics.mean(1 - (row["death_step"] or row["num_steps"]) / row["num_steps"] for row in rows)
            lines.append(
                f"| {name} | {num_steps} | {len(rows)} | {' | '.join(_counts(rows))} | {left:.0%} | {base:.2f} | "
                f"{slim:.2f} | {slim - base:+.2f} |"
            )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of both files (default: this one)")
    parser.add_argument("--kind", choices=("sizes", "lengths"), help="default: both")
    parser.add_argument("--max-runs", type=int, help="stop after so many new ones")
    options = parser.parse_args()
    path = options.folder / "auto_schedule.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = [{key: result[key] for key in next(runs())} for result in results]
    todo = [run for run in runs() if run not in done and options.kind in (None, run["kind"])]
    cluster = Cluster()
    for run in todo[: options.max_runs]:
        results.append(do(run, cluster))
        print("\n".join(describe(results[-1])), flush=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
        os.replace(partial, path)
        path.with_suffix(".md").write_text(tables(results), encoding="utf-8")


if __name__ == "__main__":
    main()
