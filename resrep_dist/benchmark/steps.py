"""Training steps side by side: plain, ResRep at full width, shrunken in each way, slim."""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.benchmark.peak_memory import peak_memory_growth
from resrep_dist.checkpoint import CheckpointFolder, snapshot
from resrep_dist.cluster import Cluster
from resrep_dist.compactor import insert_compactors, training_macs
from resrep_dist.config import Config, ShrinkConfig
from resrep_dist.errors import UserError
from resrep_dist.graph import Graph, trace
from resrep_dist.live_model import LiveModel
from resrep_dist.merging import merge
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.models import build_model
from resrep_dist.phase import model_for_training, plan_phase, pruning_of
from resrep_dist.pruner import require_prunable
from resrep_dist.report import count_parameters
from resrep_dist.shrink import Layout, at_layout
from resrep_dist.shrinker import Shrinker

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow import keras

# How long a phase is does not matter for the time of a step.
_NUM_SAMPLES = 100_000
_NUM_WARM_STEPS = 2
_NUM_MASK_UPDATES = 5


class CountingCluster(Cluster):
    """The ranks that are there, and the bytes that a step gives to its collectives."""

    def __init__(self, cluster: Cluster) -> None:
        # It is the same Horovod, which is started once.
        self.__dict__.update(vars(cluster))
        self.num_bytes = 0

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """As in a cluster; counts when it is called, so inside a `tf.function` once for each graph."""
        self.num_bytes += sum(int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.size for tensor in tensors)
        return super().sum(tensors, name)


@dataclasses.dataclass
class _Arm:
    live: LiveModel
    macs: int
    cluster: CountingCluster
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


def benchmark_steps(
    config: Config, cluster: Cluster, num_steps: int, num_rounds: int, kept: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Times of the arms' steps on one batch of noise, interleaved: each round runs `num_steps` of every arm.

    A collective.

    Args:
        kept: channels that each group keeps, by its name; by default every group keeps the same share, the largest
            that meets `prune.target_macs_fraction`.

    Returns:
        `arms` by name, `ratios` to `plain` by name, `other` for what a run does beside its steps. The time of a
        step is that of the slowest rank, so the rate is that of all ranks together.
    """
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    model = build_model(config.model)
    prune = pruning_of(config)
    graph = trace(model, prune.exclude, prune.residual_groups)
    require_prunable(model, graph)
    layout = (
        layout_of(graph, kept) if kept is not None else even_layout(graph, prune.target_macs_fraction, prune.round_to)
    )
    arms = _make_arms(model, graph, layout, config, cluster)
    batch = _batch(model, config, cluster)
    for arm in arms.values():
        _trace_and_warm(arm, batch)
    rounds: dict[str, list[list[float]]] = {name: [] for name in arms}
    for number in range(num_rounds):
        # Not always in the same order: what runs after a heavy arm may find a warmer machine.
        names = list(arms)[number % len(arms) :] + list(arms)[: number % len(arms)]
        for name in names:
            rounds[name].append(_slowest_rank(_times(arms[name].live, batch, num_steps), cluster))
    figures = {name: _figures(rounds[name], arm, config.data.global_batch_size) for name, arm in arms.items()}
    return {
        "model": config.model.name,
        "image_size_pixels": config.model.image_size,
        "global_batch_size_images": config.data.global_batch_size,
        "num_ranks": cluster.size,
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_steps": num_steps,
        "num_rounds": num_rounds,
        "widths_channels": layout.widths,
        "original_widths_channels": graph.widths,
        "arms": figures,
        "ratios": {
            name: _ratios(of_arm, figures["plain"], rounds[name], rounds["plain"]) for name, of_arm in figures.items()
        },
        "other": _measure_the_rest(arms["resrep"], graph, layout, config, batch),
        "tensorflow": tf.__version__,
    }


def layout_of(graph: Graph, kept: Mapping[str, int]) -> Layout:
    """So many channels of each group, as the report of a run has them.

    Raises:
        UserError: for other groups than the graph's, or numbers that they cannot have.
    """
    names = {group.name for group in graph.groups}
    if other := sorted(names ^ kept.keys()):
        raise UserError(
            f"--run: it is of another model, `{other[0]}` is a group of one of them only; give its own config"
        )
    for group in graph.groups:
        if not 0 < kept[group.name] <= group.num_channels or kept[group.name] % group.num_parts:
            raise UserError(
                f"--run: {group.name} keeps {kept[group.name]}, expected 1 to {group.num_channels} channels"
            )
    return Layout(tuple(tuple(range(kept[group.name] // group.num_parts)) for group in graph.groups))


def even_layout(graph: Graph, macs_fraction: float, round_to: int = 1) -> Layout:
    """Of every group the same share of the channels, as many as the multiply-adds allow; at least one."""

    def widths(share: float) -> list[int]:
        rounded = [round_to * max(1, round(share * width / round_to)) for width in graph.widths]
        return [min(pair) for pair in zip(rounded, graph.widths, strict=True)]

    shares = [number / 1000 for number in range(1001)]
    total = graph.macs.total(graph.widths)
    fitting = [share for share in shares if graph.macs.total(widths(share)) <= macs_fraction * total] or [0.0]
    return Layout(tuple(tuple(range(width)) for width in widths(fitting[-1])))


def print_steps_benchmark(console: Console, result: dict[str, Any]) -> None:
    """One line for each arm, and what else takes time."""
    table = Table(
        title=f"{result['model']}, {result['image_size_pixels']} px, batch {result['global_batch_size_images']}, "
        f"{result['num_ranks']} rank(s)"
    )
    for heading in ("arm", "ms/step", "p95", "images/s", "time", "multiply-adds", "reduced", "peak memory", "tracing"):
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
            f"{peak / 1e6:.0f} MB" if peak is not None else "not known",
            f"{arm['tracing_seconds']:.1f} s",
        )
    console.print(table)
    console.print("time, multiply-adds: relative to plain. Reduced: bytes that a step gives to its collective.")
    console.print(", ".join(f"{name.rpartition('_')[0].replace('_', ' ')} {value:.3g} {name.rpartition('_')[2]}"
                            for name, value in result["other"].items()))  # fmt: skip


def _make_arms(model: keras.Model, graph: Graph, layout: Layout, config: Config, cluster: Cluster) -> dict[str, _Arm]:
    full, refold = Layout.of(graph), dataclasses.replace(layout, is_refolded=True)
    layouts = {"resrep": full, "resrep_exact": layout, "resrep_refold": refold}
    dead = [~np.isin(np.arange(width), kept) for width, kept in zip(graph.widths, layout.kept, strict=True)]
    slim = delete_channels(fold_model(insert_compactors(model, graph), graph, dead), graph, dead)
    return {
        "plain": _plain_arm(model, graph.macs.total(graph.widths), config, cluster),
        **{name: _pruned_arm(model, graph, of_arm, config, cluster) for name, of_arm in layouts.items()},
        "slim": _plain_arm(slim, graph.macs.total(layout.widths), config, cluster),
    }


def _plain_arm(model: keras.Model, macs: int, config: Config, cluster: Cluster) -> _Arm:
    # The phase `train` without pruning, so that both arms have the same optimizer settings.
    config = dataclasses.replace(config, prune=None, base=None, shrink=ShrinkConfig())
    counting = CountingCluster(cluster)
    model = model_for_training(model, None, config, counting)
    return _Arm(LiveModel(model, None, config, plan_phase(config, None, _NUM_SAMPLES), counting), macs, counting)


def _pruned_arm(model: keras.Model, graph: Graph, layout: Layout, config: Config, cluster: Cluster) -> _Arm:
    counting = CountingCluster(cluster)
    model = at_layout(model_for_training(model, graph, config, counting), graph, layout)
    shrinker = Shrinker(graph, config, plan_phase(config, graph, _NUM_SAMPLES), counting)
    live = shrinker.live_at(model, layout)
    return _Arm(live, training_macs(model, graph, layout.widths, layout.is_refolded), counting)


def _batch(model: keras.Model, config: Config, cluster: Cluster) -> tuple[tf.Tensor, tf.Tensor]:
    """This rank's part of a batch of noise."""
    random = np.random.default_rng(config.seed)
    size = config.data.global_batch_size
    part = slice(size * cluster.rank // cluster.size, size * (cluster.rank + 1) // cluster.size)
    images = random.normal(size=[part.stop - part.start, *model.input_shape[1:]]).astype(np.float32)
    return tf.constant(images), tf.constant(random.integers(0, config.model.num_classes, len(images)))


def _trace_and_warm(arm: _Arm, batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    start = time.perf_counter()
    arm.live.step.trace(*batch)
    arm.figures["tracing_seconds"] = time.perf_counter() - start
    arm.figures["reduced_bytes"] = arm.cluster.num_bytes
    _times(arm.live, batch, _NUM_WARM_STEPS)
    growth = peak_memory_growth(lambda: _times(arm.live, batch, 1))
    state_bytes = sum(int(np.prod(v.shape, dtype=np.int64)) * v.dtype.size for v in arm.live.state.values())
    arm.figures["peak_memory_bytes"] = None if growth is None else growth + state_bytes


def _times(live: LiveModel, batch: tuple[tf.Tensor, tf.Tensor], num_steps: int) -> list[float]:
    """Milliseconds of each step on this rank."""
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        live.step.run(*batch)
        # A device may still be at work when the call returns.
        live.optimizer.iterations.numpy()
        times.append(1000.0 * (time.perf_counter() - start))
    return times


def _slowest_rank(times: list[float], cluster: Cluster) -> list[float]:
    """Of each step the longest time of all ranks, on all of them."""
    table = np.zeros([cluster.size, len(times)])
    table[cluster.rank] = times
    (summed,) = cluster.sum([tf.constant(table)], "times")
    return summed.numpy().max(axis=0).tolist()


def _figures(rounds: list[list[float]], arm: _Arm, global_batch_size: int) -> dict[str, Any]:
    times = [value for of_round in rounds for value in of_round]
    median = statistics.median(times)
    return {
        "step_ms_median": median,
        "step_ms_p95": float(np.percentile(times, 95)),
        "images_per_second": 1000.0 * global_batch_size / median,
        "macs": arm.macs,
        "parameters": count_parameters(arm.live.model),
        **arm.figures,
    }


def _ratios(of_arm: dict[str, Any], plain: dict[str, Any], rounds: Any, plain_rounds: Any) -> dict[str, float]:
    pairs = zip(rounds, plain_rounds, strict=True)
    return {
        # Round by round, since a machine's speed drifts.
        "time": statistics.median(statistics.median(own) / statistics.median(other) for own, other in pairs),
        "macs": of_arm["macs"] / plain["macs"],
        "reduced_bytes": of_arm["reduced_bytes"] / plain["reduced_bytes"],
    }


def _measure_the_rest(
    arm: _Arm, graph: Graph, layout: Layout, config: Config, batch: tuple[tf.Tensor, tf.Tensor]
) -> dict[str, float]:
    """What a run does beside its steps."""
    live, cluster = arm.live, arm.cluster
    assert live.pruner is not None
    updates = [_seconds(live.pruner.update) for _ in range(_NUM_MASK_UPDATES)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder))
        checkpoint = cluster.from_root(lambda: _seconds(lambda: checkpoints.save(0, snapshot(live.state), {})))
    merging = cluster.from_root(lambda: _seconds(lambda: merge(live.model, graph, batch[0].numpy())))
    shrinker = Shrinker(graph, config, plan_phase(config, graph, _NUM_SAMPLES), cluster)
    smaller: list[LiveModel] = []
    shrink = _seconds(lambda: smaller.append(shrinker.shrink(live, layout, ())))
    return {
        "mask_update_ms": 1000.0 * statistics.median(updates),
        "checkpoint_seconds": checkpoint,
        "merge_seconds": merging,
        "shrink_seconds": shrink,
        "tracing_after_shrink_seconds": _seconds(lambda: smaller[0].step.trace(*batch)),
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
