"""Compares what tables of times predict with what slim models take: `python -m tests.quality.measured_costs`.

For each runtime a table is measured as by `resrep measure`. Then models that are pruned at random to three targets of
the table, with other widths than those that scaled it, are measured in turn with the base model. There are two errors:
that of the predicted time, and that of the predicted fraction of the base's time, since the machine may be faster or
slower than before.

Examples:
    python -m tests.quality.measured_costs
    python -m tests.quality.measured_costs --model resnet50 --image-size 224 --runtime onnx --threads 2
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from resrep_dist.benchmark.measure import measure_costs
from resrep_dist.benchmark.timers import whole_model
from resrep_dist.config import ModelConfig, build_config
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.graph import Graph, trace
from resrep_dist.graph.latency import Latency
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.models.building import build_model
from resrep_dist.pruning.rules import select_masks
from resrep_dist.timing.rounds import time_in_turn
from resrep_dist.timing.summary import wide_spreads, worst_error

import numpy as np
from tensorflow import keras

# Of the way from the narrowest model to the base.
PARTS = (0.75, 0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--runtime", action="append", choices=("keras", "tflite", "onnx"), help="default: all")
    parser.add_argument("--threads", type=int, default=visible_cores())
    parser.add_argument("--output", type=Path, default=Path("measured_costs"), help="folder for tables and figures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for runtime in options.runtime or ("onnx", "tflite", "keras"):
        rows += compare(options, runtime)
        (options.output / "measured_costs.json").write_text(json.dumps(rows, indent=1))
    print("| runtime | asked | multiply-adds | predicted ms | measured ms | error | error of the fraction |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['runtime']} | {row['asked']:.2f} | {row['macs_fraction']:.2f} | {row['predicted_ms']:.3f} | "
            f"{row['measured_ms']:.3f} | {100 * row['error']:+.1f} % | {100 * row['fraction_error']:+.1f} % |"
        )
    for name in ("error", "fraction_error"):
        errors = [abs(row[name]) for row in rows]
        print(f"{name}: median {100 * statistics.median(errors):.1f} %, largest {100 * max(errors):.1f} %")


def compare(options: argparse.Namespace, runtime: str) -> list[dict]:
    """Measure a table, and slim models at three targets."""
    document = {
        "model": {"name": options.model, "num_classes": 10, "image_size": options.image_size},
        "data": {"source": "digits", "global_batch_size": 64},
        "train": {"num_epochs": 1, "learning_rate": 0.01},
        "prune": {"target_macs_fraction": 0.5},
    }
    config = build_config(document, to_start=False)
    start = time.monotonic()
    table = measure_costs(config, runtime, options.threads, 1, lambda *_: None)
    values = dataclasses.asdict(table)
    print(
        f"{runtime}: table in {time.monotonic() - start:.0f} s, whole models within {100 * worst_error(values):.1f} %, "
        f"{len(wide_spreads(values))} of {len(table.layers)} layers not known well",
        flush=True,
    )
    table.write(options.output / f"{options.model}_{runtime}.json")
    model = build_model(ModelConfig(**document["model"]))
    graph = trace(model)
    latency, pruned = Latency(table, graph, "table"), insert_compactors(model, graph)
    norms = [np.random.default_rng(7).uniform(size=width) for width in graph.widths]
    models, rows = [model], []
    floor = latency.total([1] * len(graph.widths))
    for part in PARTS:
        target = floor + part * (latency.total(graph.widths) - floor)
        widths = select_masks(norms, latency, target_cost=target, max_chosen=10**6).widths
        models.append(at_widths(pruned, graph, widths))
        macs = graph.macs.total(widths) / graph.macs.total(graph.widths)
        rows.append({"runtime": runtime, "asked": target / table.base_ms, "widths": widths, "macs_fraction": macs,
                     "predicted_ms": latency.total(widths)})  # fmt: skip
    runs = [whole_model(each, runtime, 1, options.threads) for each in models]
    base, *slim = time_in_turn(runs, spread_bound=0.01, max_rounds=400)
    for row, measured in zip(rows, slim, strict=True):
        predicted = row["predicted_ms"] / table.base_ms
        row |= {
            "measured_ms": measured.milliseconds, "spread": measured.spread, "base_ms": base.milliseconds,
            "table_base_ms": table.base_ms, "error": row["predicted_ms"] / measured.milliseconds - 1,
            "fraction_error": predicted / (measured.milliseconds / base.milliseconds) - 1,
        }  # fmt: skip
    return rows


def at_widths(pruned: keras.Model, graph: Graph, widths: Sequence[int]) -> keras.Model:
    """The merged model that keeps the first channels of each group."""
    dead = [np.arange(full) >= width for full, width in zip(graph.widths, widths, strict=True)]
    return delete_channels(fold_model(pruned, graph, dead), graph, dead)


if __name__ == "__main__":
    main()
