"""Benchmark of training steps, in turn: stock Keras, plain, with ResRep at full width, smaller, slim."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.arms import (
    NUM_SAMPLES,
    Arm,
    Batch,
    Rounds,
    compactors_arm,
    noise_batch,
    plain_arm,
    prepare,
    pruned_arm,
    setting,
    taught_arm,
    time_in_turn,
    time_ratio,
    trace_and_warm,
    unchecked_arm,
)
from resrep_dist.benchmark.stock import keras_arm, one_group_arm, stock_arm
from resrep_dist.benchmark.widths import choose_channels
from resrep_dist.checkpoints.files import CheckpointFolder, snapshot
from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.merge import merge
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.monitoring.curves import Curves
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.pruning.deadness import kill_channels
from resrep_dist.reporting.measurement import count_parameters
from resrep_dist.shrinking.shrinker import Shrinker
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import plan_phase

import numpy as np
from rich.console import Console
from rich.table import Table
from tensorflow import keras

ARMS = ("stock_horovod", "plain", "compactors", "resrep", "resrep_exact", "resrep_unchecked", "slim")
"""What is measured unless names are given."""
OTHER_ARMS = ("stock_keras", "one_group", "resrep_taught")
"""What is measured if it is named."""
_NUM_REPEATED = 5
_ALSO_RELATIVE_TO = {
    "compactors": "its compactors trained plainly",
    "unchecked": "itself without digests and finite checks",
}


def benchmark_steps(
    config: Config,
    cluster: Cluster,
    num_steps: int,
    num_rounds: int,
    run: Path | None = None,
    names: Sequence[str] = ARMS,
) -> dict[str, Any]:
    """Time the steps of all arms in turn, on a batch of noise. A collective.

    Args:
        config: The configuration.
        cluster: The ranks.
        num_steps: Number of steps of each arm per round.
        num_rounds: Number of rounds.
        run: Run or log with the widths of the smaller models, see `choose_channels`.
        names: Names of the arms, with `plain` among them.

    Returns:
        `arms` with the figures of each arm, by name, `ratios` to the arm `plain`, by name, `other` with the times of
        what a run does besides its steps (empty without the arm `resrep`), and the setting. The time of a step is that
        of the slowest rank, and `images_per_second` is that of all ranks together.

    Raises:
        UserError: If the model has nothing to prune, or the run is of another model.
    """
    model, graph = prepare(config)
    channels = cluster.everywhere(lambda: choose_channels(graph, config, run))
    in_order = [name for name in ARMS + OTHER_ARMS if name in names]
    arms = {name: _make_arm(name, model, graph, channels, config, cluster) for name in in_order}
    batch = noise_batch(model, config, cluster)
    for arm in arms.values():
        trace_and_warm(arm, batch)
    rounds = time_in_turn(arms, batch, num_steps, num_rounds, cluster)
    figures = {name: _figures(rounds[name], arm, config.data.global_batch_size) for name, arm in arms.items()}
    return {
        **setting(config, graph, cluster, num_steps, num_rounds),
        "widths_channels": channels.widths,
        "arms": figures,
        "ratios": {name: _ratios(name, figures, rounds) for name in arms},
        "other": _measure_the_rest(arms["resrep"], graph, channels, config, batch) if "resrep" in arms else {},
    }


def steps_sections(result: Mapping[str, Any]) -> dict[str, Any]:
    """Divide the result of `benchmark_steps` into the sections `arms`, `ratios` and `steps` of `benchmark.json`."""
    rest = {key: value for key, value in result.items() if key not in ("arms", "ratios")}
    return {"steps": rest, "arms": result["arms"], "ratios": result["ratios"]}


def print_steps_benchmark(console: Console, result: dict[str, Any]) -> None:
    """Print the figures of the arms, one row for each, and the times of what a run does besides its steps."""
    table = Table(
        title=f"{result['model']}, {result['image_size_pixels']} px, batch {result['global_batch_size_images']}, "
        f"{result['num_ranks']} rank(s)"
    )
    for heading in (
        "arm",
        "ms/step",
        "p95",
        "images/s",
        "time",
        "multiply-adds",
        "reduced",
        "tensors",
        "peak memory",
        "tracing",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=heading == "arm")
    for name, arm in result["arms"].items():
        ratios, peak = result["ratios"][name], arm["peak_memory_bytes"]
        table.add_row(
            name,
            f"{arm['step_ms_median']:.1f}",
            f"{arm['step_ms_p95']:.1f}",
            f"{arm['images_per_second']:.0f}",
            f"{ratios['time']:.3f}",
            f"{ratios['macs']:.3f}",
            f"{arm['reduced_bytes'] / 1e6:.2f} MB",
            str(arm["negotiated_tensors"]),
            f"{peak / 1e6:.0f} MB" if peak is not None else "not known",
            f"{arm['tracing_seconds']:.1f} s",
        )
    console.print(table)
    console.print(
        "time, multiply-adds: relative to plain. Reduced: bytes that a step gives to its collectives; tensors: as how "
        "many. Stock_horovod is Keras' SGD with Horovod's tape, stock_keras the step of `fit`: nothing of this package."
    )
    for name, other in _ALSO_RELATIVE_TO.items():
        ratio = result["ratios"].get("resrep", {}).get(f"time_to_{name}")
        if ratio is not None:
            console.print(f"Resrep takes {ratio:.3f} of the time of {other}.")
    if result["other"]:
        names = {name: name.rpartition("_") for name in result["other"]}
        console.print(
            ", ".join(
                f"{names[n][0].replace('_', ' ')} {value:.3g} {names[n][2]}" for n, value in result["other"].items()
            )
        )


def _make_arm(
    name: str, model: keras.Model, graph: Graph, channels: KeptChannels, config: Config, cluster: Cluster
) -> Arm:
    macs = graph.macs.total(graph.widths)
    plain = {"stock_horovod": stock_arm, "stock_keras": keras_arm, "plain": plain_arm, "one_group": one_group_arm}
    if name in plain:
        return plain[name](model, macs, config, cluster)
    if name == "resrep_taught":
        return taught_arm(model, graph, config, cluster)
    if name == "compactors":
        return compactors_arm(model, graph, config, cluster)
    if name == "resrep_unchecked":
        return unchecked_arm(model, graph, config, cluster)
    if name == "slim":
        dead = channels.dead(graph)
        slim = delete_channels(fold_model(insert_compactors(model, graph), graph, dead), graph, dead)
        return plain_arm(slim, graph.macs.total(channels.widths), config, cluster)
    kept = channels if name == "resrep_exact" else KeptChannels.all_of(graph)
    return pruned_arm(model, graph, kept, config, cluster)


def _figures(rounds: Rounds, arm: Arm, global_batch_size: int) -> dict[str, Any]:
    times = [value for of_round in rounds for value in of_round]
    median = statistics.median(times)
    return {
        "step_ms_median": median,
        "step_ms_p95": float(np.percentile(times, 95)),
        "images_per_second": 1000.0 * global_batch_size / median,
        "macs": arm.macs,
        "parameters": count_parameters(arm.live.state.model),
        **arm.figures,
    }


def _ratios(name: str, figures: Mapping[str, dict[str, Any]], rounds: Mapping[str, Rounds]) -> dict[str, float]:
    own, plain = figures[name], figures["plain"]
    ratios = {
        "time": time_ratio(rounds[name], rounds["plain"]),
        "macs": own["macs"] / plain["macs"],
        "reduced_bytes": own["reduced_bytes"] / plain["reduced_bytes"],
    }
    if name == "resrep":
        # Both arms have the convolutions of the compactors, so the rest is penalty, masks, norms and digests.
        others = {"compactors": "compactors", "unchecked": "resrep_unchecked"}
        ratios |= {
            f"time_to_{key}": time_ratio(rounds[name], rounds[arm]) for key, arm in others.items() if arm in rounds
        }
    return ratios


def _measure_the_rest(arm: Arm, graph: Graph, channels: KeptChannels, config: Config, batch: Batch) -> dict[str, float]:
    """Measure what a run does besides its steps."""
    live, cluster = arm.live, arm.cluster
    assert live.pruner is not None

    def beat_often() -> None:
        for step in range(1000):
            cluster.watchdog.beat(step)

    updates = [_seconds(live.pruner.update) for _ in range(_NUM_REPEATED)]
    agreements = [_seconds(lambda: live.state.agree(cluster)) for _ in range(_NUM_REPEATED)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder))
        checkpoint = cluster.from_root(lambda: _seconds(lambda: checkpoints.save(0, snapshot(live.state), {})))
    logging_ms = cluster.from_root(lambda: _logging_ms(live, config))
    kill_channels(live.state.model, graph, channels.dead(graph))
    merging = cluster.from_root(lambda: _seconds(lambda: merge(live.state.model, graph, batch[0].numpy())))
    masks = plan_phase(config, graph, NUM_SAMPLES).require_masks()
    shrinker = Shrinker(graph, config, masks, cluster)
    shrink = _seconds(lambda: live.follow(shrinker.shrink(live.state, channels, ())))
    return {
        "mask_update_ms": 1000.0 * statistics.median(updates),
        "agreement_ms": 1000.0 * statistics.median(agreements),
        "watchdog_ms": _seconds(beat_often),
        "logging_ms": logging_ms,
        "checkpoint_seconds": checkpoint,
        "merge_seconds": merging,
        "shrink_seconds": shrink,
        "first_step_after_shrink_seconds": _seconds(lambda: live.step.run(*batch)),
    }


def _logging_ms(live: LiveModel, config: Config) -> float:
    """Measure what logging adds to a step on rank 0: reading figures, writing curves and histograms, the bar."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = Console(file=io.StringIO(), force_terminal=True)
        monitor = Monitor("steps", Path(folder), terminal, NUM_SAMPLES)
        curves = Curves(monitor, config.logging, config.data.global_batch_size)
        monitor.start(0)

        steps = iter(range(1, _NUM_REPEATED + 1))

        def log() -> None:
            curves.add_training(next(steps), {**live.step.read_metrics(), "learning_rate": 0.01}, live.pruner)

        times = [_seconds(log) for _ in range(_NUM_REPEATED)]
        monitor.close()
    return 1000.0 * statistics.median(times)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
