"""Benchmark of a whole run at recorded widths: the cost of pruning relative to plain training of the same length."""

import dataclasses
import gc
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.arms import (
    Arm,
    noise_batch,
    plain_arm,
    prepare,
    pruned_arm,
    setting,
    time_in_turn,
    time_ratio,
    trace_and_warm,
)
from resrep_dist.benchmark.widths import read_log
from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import insert_compactors

import numpy as np
from rich.console import Console
from rich.table import Table
from tensorflow import keras

_log = logging.getLogger(__name__)
MODES = ("off", "exact", "merge")
_RATIOS = ("macs_vs_plain", "time_vs_plain", "reduced_bytes_vs_plain")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive steps of a run with the same widths."""

    num_steps: int
    """Number of steps."""
    channels: KeptChannels
    """Channels of the model in training."""
    macs: int
    """Multiply-adds of a forward pass of one image, including compactors."""


def stages(
    log: Sequence[tuple[int, list[int]]], model: keras.Model, graph: Graph, config: Config, mode: str
) -> list[Stage]:
    """Return the stages of a run with recorded widths, as a shrinker would make them that knows when the run merges.

    The model becomes smaller whenever at least `shrink.min_saved_macs_fraction` of the multiply-adds is saved, and
    `shrink.min_saved_steps`. In the mode `merge` it loses its compactors as soon as it has the widths of the end.

    Args:
        log: The result of `read_log`.
        model: The model with compactors at full width.
        graph: Graph of the original model.
        config: The configuration.
        mode: The `shrink.mode`.
    """
    base_macs = graph.macs.total(graph.widths)
    share, min_steps = config.shrink.min_saved_macs_fraction, config.shrink.min_saved_steps
    channels = KeptChannels.all_of(graph)
    macs = training_macs(model, graph, channels)
    if mode == "off":
        return [Stage(log[-1][0], channels, macs)]
    end = next(step for step, widths in log if widths == log[-1][1]) if mode == "merge" else log[-1][0]
    result, since = list[Stage](), 0
    for step, widths in log[:-1]:
        is_merged = mode == "merge" and widths == log[-1][1]
        smaller = KeptChannels.first_of(widths, is_merged)
        next_macs = training_macs(model, graph, smaller)
        saved = (macs - next_macs) / base_macs
        if is_merged or (saved >= share and saved * (end - step) >= min_steps):
            result.append(Stage(step - since, channels, macs))
            since, macs, channels = step, next_macs, smaller
        if is_merged:
            break
    return [*result, Stage(log[-1][0] - since, channels, macs)]


def benchmark_replay(config: Config, path: Path, cluster: Cluster, num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Time the steps of every stage of a recorded run in turn with plain training. A collective.

    Args:
        config: The configuration.
        path: A log of widths, see `read_log`.
        cluster: The ranks.
        num_steps: Number of steps of each model per round.
        num_rounds: Number of rounds of each model.

    Returns:
        For whole runs, by `shrink.mode`, relative to plain training of as many steps: `macs_vs_plain`, `time_vs_plain`,
        `reduced_bytes_vs_plain` (given to the collectives), and `shrinks_vs_plain`, the time of building and tracing
        the `num_shrinks` smaller models, which is not part of `time_vs_plain`. Besides, `points` with every measured
        model, `stages` with the number of steps of each model by mode, and the setting.

    Raises:
        UserError: If the log cannot be read or is of another model.
    """
    model, graph = prepare(config)
    log = cluster.everywhere(lambda: read_log(path, graph))
    with_compactors = insert_compactors(model, graph)
    by_mode = {mode: stages(log, with_compactors, graph, config, mode) for mode in MODES}
    all_channels = dict.fromkeys(stage.channels for mode in MODES for stage in by_mode[mode])
    plain = plain_arm(model, graph.macs.total(graph.widths), config, cluster)
    batch = noise_batch(model, config, cluster)
    trace_and_warm(plain, batch)
    points = {}
    for number, channels in enumerate(all_channels, start=1):
        start = time.perf_counter()
        arm = pruned_arm(model, graph, channels, config, cluster)
        build_seconds = time.perf_counter() - start
        trace_and_warm(arm, batch)
        rounds = time_in_turn({"plain": plain, "arm": arm}, batch, num_steps, num_rounds, cluster)
        points[channels] = _point(channels, arm, plain, rounds, build_seconds)
        if cluster.is_root:
            figures = [f"{points[channels][key]:.3f}" for key in ("macs_vs_plain", "time_vs_plain")]
            _log.info("point %d of %d: multiply-adds %s, time %s of plain", number, len(all_channels), *figures)
        del arm
        # Graphs and models are reference cycles, and those of a ResNet-50 are large.
        gc.collect()
    return {
        **setting(config, graph, cluster, num_steps, num_rounds),
        "min_saved_macs_fraction": config.shrink.min_saved_macs_fraction,
        "min_saved_steps": config.shrink.min_saved_steps,
        "num_replayed_steps": log[-1][0],
        **_totals(by_mode, points),
        "stages": {mode: [_measured(stage, points) for stage in of_mode] for mode, of_mode in by_mode.items()},
        "points": list(points.values()),
    }


def _point(
    channels: KeptChannels, arm: Arm, plain: Arm, rounds: dict[str, list[list[float]]], build_seconds: float
) -> dict[str, Any]:
    return {
        "widths_channels": channels.widths,
        "is_merged": channels.is_merged,
        "macs_vs_plain": arm.macs / plain.macs,
        "time_vs_plain": time_ratio(rounds["arm"], rounds["plain"]),
        "reduced_bytes_vs_plain": arm.figures["reduced_bytes"] / plain.figures["reduced_bytes"],
        "step_ms_median": float(np.median(rounds["arm"])),
        "plain_step_ms_median": float(np.median(rounds["plain"])),
        "build_and_tracing_seconds": build_seconds + arm.figures["tracing_seconds"],
    }


def _measured(stage: Stage, points: dict[KeptChannels, dict[str, Any]]) -> dict[str, Any]:
    point = points[stage.channels]
    return {"num_steps": stage.num_steps, **{key: point[key] for key in _RATIOS}}


def _totals(by_mode: dict[str, list[Stage]], points: dict[KeptChannels, dict[str, Any]]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {key: {} for key in (*_RATIOS, "num_shrinks", "shrinks_vs_plain")}
    plain_seconds = float(np.median([point["plain_step_ms_median"] for point in points.values()])) / 1000.0
    for mode, of_mode in by_mode.items():
        num_steps = sum(stage.num_steps for stage in of_mode)
        smaller = [points[after.channels]["build_and_tracing_seconds"] for _, after in itertools.pairwise(of_mode)]
        for key in _RATIOS:
            totals[key][mode] = sum(s.num_steps * points[s.channels][key] for s in of_mode) / num_steps
        totals["num_shrinks"][mode] = len(smaller)
        totals["shrinks_vs_plain"][mode] = sum(smaller) / (num_steps * plain_seconds)
    return totals


def print_replay_benchmark(console: Console, result: dict[str, Any]) -> None:
    """Print the figures of whole runs, one row for each mode."""
    table = Table(
        title=f"{result['model']}, {result['image_size_pixels']} px, batch {result['global_batch_size_images']}, "
        f"{result['num_ranks']} rank(s), {result['num_replayed_steps']:,} steps replayed, relative to plain training"
    )
    for heading in ("shrink.mode", "multiply-adds", "time", "reduced", "shrinks", "their time"):
        table.add_column(heading, justify="left" if heading == "shrink.mode" else "right")
    for mode in result["macs_vs_plain"]:
        table.add_row(
            mode,
            f"{result['macs_vs_plain'][mode]:.3f}",
            f"{result['time_vs_plain'][mode]:.3f}",
            f"{result['reduced_bytes_vs_plain'][mode]:.3f}",
            str(result["num_shrinks"][mode]),
            f"{result['shrinks_vs_plain'][mode]:.5f}",
        )
    console.print(table)
