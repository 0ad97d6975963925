"""Measures how long the layers that pruning changes take in a runtime, by their widths: `resrep measure`."""

import dataclasses
import datetime
import logging
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any

from resrep_dist.benchmark.layer_grids import Scan, cheap_layer, find_steps, grid_widths, layer_at, scans_of
from resrep_dist.benchmark.rounds import Median, time_in_turn
from resrep_dist.benchmark.timers import Run, require_runtime, single_layer, whole_model
from resrep_dist.config import Config
from resrep_dist.config.target import Runtime
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.graph import Graph, flatten, trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import Check, LatencyTable, LayerTimes, Steps
from resrep_dist.graph.signatures import WeightedCall
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.models.building import build_model
from resrep_dist.monitoring.quiet import without_lines
from resrep_dist.pruning.targets import require_prunable
from resrep_dist.training.phase import pruning_of

import numpy as np
from tensorflow import keras

_log = logging.getLogger(__name__)
SPREAD_BOUND = 0.02
"""Spread of a median that is small enough, as a fraction."""
_MAX_ROUNDS = 100
# Shares of the channels of whole models that are measured, beside the one with all channels.
_SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
_LINES_OF_TFLITE = ["^INFO: Created TensorFlow Lite XNNPACK delegate"]
Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is, and how much there is."""


class _Measurement:
    """What does not change during a measurement."""

    def __init__(
        self, model: keras.Model, runtime: Runtime, batch_size: int, num_threads: int, progress: Progress
    ) -> None:
        self.model = flatten(model)
        self._runtime, self._batch_size, self._num_threads = runtime, batch_size, num_threads
        self._progress = progress

    def layers(self, points: Sequence[tuple[WeightedCall, int, int]], what: str) -> list[Median]:
        """Return the times of layers at numbers of input and output channels.

        ONNX Runtime passes channels on in blocks, and takes a layer that receives them otherwise for another one. So
        there a layer is measured behind another, whose own time is taken off.
        """
        runs: list[Run] = []
        before: dict[tuple[str, int], keras.Model] = {}
        for number, (call, inputs, outputs) in enumerate(points):
            self._progress(f"{what}: preparing", number, len(points))
            layer = self.model.get_layer(call.name)
            is_behind = self._runtime == "onnx" and isinstance(layer, keras.layers.Conv2D)
            runs.append(self._run(layer_at(layer, call, inputs, outputs, behind_another=is_behind)))
            if is_behind:
                before.setdefault((call.size, inputs), cheap_layer(call, inputs))
        medians = self._times([*runs, *map(self._run, before.values())], what)
        of_before = dict(zip(before, medians[len(runs) :], strict=True))
        return [
            time.without(of_before.get((call.size, inputs)))
            for time, (call, inputs, _) in zip(medians, points, strict=False)
        ]

    def _run(self, model: keras.Model) -> Run:
        return single_layer(model, self._runtime, self._batch_size, self._num_threads)

    def models(self, models: Sequence[keras.Model]) -> list[Median]:
        """Return the times of whole models."""
        runs = []
        for number, model in enumerate(models):
            self._progress("whole models: preparing", number, len(models))
            runs.append(whole_model(model, self._runtime, self._batch_size, self._num_threads))
        return self._times(runs, "whole models")

    def _times(self, runs: Sequence[Run], what: str) -> list[Median]:
        def on_round(number: int, num_open: int) -> None:
            self._progress(f"{what}: round {number}", len(runs) - num_open, len(runs))

        return time_in_turn(runs, spread_bound=SPREAD_BOUND, max_rounds=_MAX_ROUNDS, on_round=on_round)


def measure_costs(
    config: Config, runtime: Runtime, num_threads: int, batch_size: int, progress: Progress
) -> LatencyTable:
    """Measure the layers of a model whose width pruning changes, alone at many widths, and some whole models.

    The whole models have random widths. By their times the sum of the layers is scaled, and a constant is added for all
    that pruning does not change.

    Args:
        config: The model, and what of it is pruned.
        runtime: What runs the layers.
        num_threads: Number of threads.
        batch_size: Number of images in a batch.
        progress: Is told how far it is.

    Raises:
        UserError: If the model cannot be pruned, or the runtime is not installed.
    """
    versions = require_runtime(runtime, num_threads)
    prune = pruning_of(config)
    model = build_model(config.model, config.task)
    graph = trace(model, prune.exclude, prune.residual_groups)
    require_prunable(model.name, graph)
    with without_lines(_LINES_OF_TFLITE):
        measurement = _Measurement(model, runtime, batch_size, num_threads, progress)
        layers = _measure_layers(measurement, graph)
        models = _whole_models(model, graph)
        base, *checked = measurement.models([model, *(merged for _, merged in models)])
    table = LatencyTable(
        model=config.model.name, runtime=runtime, batch_size=batch_size, num_threads=num_threads, machine=_machine(),
        versions=versions, date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        spread_bound=SPREAD_BOUND, base_ms=base.milliseconds, constant_ms=0.0, scale=1.0, layers=layers,
    )  # fmt: skip
    return _fitted(table, graph, [(widths, time) for (widths, _), time in zip(models, checked, strict=True)])


def _measure_layers(measurement: _Measurement, graph: Graph) -> tuple[LayerTimes, ...]:
    calls = {call.key: call for call in graph.calls}
    names: dict[Any, list[str]] = {key: [] for key in calls}
    for call in graph.calls:
        names[call.key].append(call.name)
    scans = scans_of(list(calls.values()))
    times = measurement.layers([point for scan in scans for point in scan.points], "blocks of channels")
    steps = _steps_by_kind(scans, [time.milliseconds for time in times])
    points: list[tuple[WeightedCall, int, int]] = []
    grids = {}
    for key, call in calls.items():
        of_kind = [steps.get((call.kind, side), Steps()) for side in range(2)]
        sides = grid_widths(call, of_kind)
        grids[key] = (sides, of_kind)
        points += [(call, inputs, outputs) for inputs in sides[0] for outputs in sides[1]]
    medians = iter(measurement.layers(points, f"{len(calls)} layers"))
    result = []
    for key, (sides, of_kind) in grids.items():
        rows = [[next(medians) for _ in sides[1]] for _ in sides[0]]
        result.append(
            LayerTimes(
                tuple(names[key]),
                calls[key].signature,
                tuple(sides[0]),
                tuple(sides[1]),
                tuple(tuple(time.milliseconds for time in row) for row in rows),
                tuple(tuple(time.spread for time in row) for row in rows),
                *of_kind,
            )  # fmt: skip
        )
    return tuple(result)


def _steps_by_kind(scans: Sequence[Scan], milliseconds: Sequence[float]) -> dict[tuple[str, int], Steps]:
    """Return the blocks of channels of each kind of layer, for its inputs (0) and its outputs (1)."""
    times, result = iter(milliseconds), {}
    for scan in scans:
        result[scan.kind, scan.side] = find_steps(scan.widths, [next(times) for _ in scan.widths])
        _log.info("%s, %s: %s", scan.kind, ("inputs", "outputs")[scan.side], _in_words(result[scan.kind, scan.side]))
    return result


def _in_words(steps: Steps) -> str:
    text = f"blocks of {steps.size} channels, share {steps.share:g}" if steps.share else "no blocks of channels"
    slow = f"; {steps.detour:g} times as slow where no multiple of {steps.unit}" if steps.unit > 1 else ""
    return text + slow


def _whole_models(model: keras.Model, graph: Graph) -> list[tuple[tuple[int, ...], keras.Model]]:
    """Return merged models of random widths, the first with all channels."""
    random, result = np.random.default_rng(0), []
    pruned = insert_compactors(model, graph)
    for share in (1.0, *_SHARES):
        wanted = [share * width * (1.0 if share == 1 else random.uniform(0.6, 1.4)) for width in graph.widths]
        widths = tuple(min(w, max(1, round(of))) for of, w in zip(wanted, graph.widths, strict=True))
        dead = [np.arange(full) >= width for full, width in zip(graph.widths, widths, strict=True)]
        result.append((widths, delete_channels(fold_model(pruned, graph, dead), graph, dead)))
    return result


def _fitted(table: LatencyTable, graph: Graph, measured: Sequence[tuple[tuple[int, ...], Median]]) -> LatencyTable:
    """Return the table with a constant and a scale by which it gives the times of whole models, by relative errors."""
    latency = Latency(table, graph, table.model)
    sums = np.array([latency.layer_sum(widths) for widths, _ in measured])
    times = np.array([time.milliseconds for _, time in measured])
    (scale, constant), *_ = np.linalg.lstsq(np.stack([sums / times, 1 / times], 1), np.ones(len(times)), rcond=None)
    if scale <= 0:
        _log.warning(
            "Whole models do not get slower with their layers: the times of this machine mean nothing now. Measure "
            "again when it is free."
        )
        scale, constant = 1.0, float(np.mean(times - sums))
    checks = tuple(
        Check(widths, time.milliseconds, float(constant + scale * of_layers), time.spread)
        for (widths, time), of_layers in zip(measured, sums, strict=True)
    )
    return dataclasses.replace(table, constant_ms=float(constant), scale=float(scale), checks=checks)


def _machine() -> dict[str, str]:
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": str(visible_cores()),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def worst_error(table: LatencyTable) -> float:
    """Return the largest difference of a prediction for a whole model from its time, as a fraction of the time.

    Args:
        table: A measured table.
    """
    return max((abs(check.predicted_ms / check.measured_ms - 1) for check in table.checks), default=math.nan)
