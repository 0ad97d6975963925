"""Measures how long the layers that pruning changes take by their widths, and fits their sum to whole models.

A few layers are timed at neighboring widths, by which blocks of channels are found; then all layers at a grid of widths
that depends on these; then the base model and merged models of other widths.
"""

import dataclasses
import datetime
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from .calls import WeightedCall
from .grids import Point, Scan, grid_widths, scans_of, unequal
from .interpolation import Grids
from .machine import machine
from .rounds import Median, time_in_turn
from .runtimes import Run
from .steps import find_steps
from .table import Check, LayerTimes, Steps

_log = logging.getLogger(__name__)
SPREAD_BOUND = 0.02
"""Spread of a median that is small enough, as a fraction."""
MAX_ROUNDS = 100
"""Number of rounds after which a spread is as it is."""
FORMAT = 1
"""Version of the form of tables."""
Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is, and how much there is."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured."""

    model: str
    """Name of the model."""
    runtime: str
    """What runs the layers."""
    batch_size: int
    """Number of images in a batch."""
    calls: tuple[WeightedCall, ...]
    """All calls whose number of channels pruning changes."""
    behind: tuple[str, ...]
    """Names of layers that are measured behind another one, whose own time is taken off."""
    model_widths: tuple[tuple[int, ...], ...]
    """Number of channels of each group in the merged models that are measured whole."""


class Files(Protocol):
    """Makes what is measured ready to run."""

    def layer(self, point: Point) -> Run:
        """Return a pass of a layer, behind another one if its name is in `Task.behind`."""

    def before(self, point: Point) -> Run:
        """Return a pass of the other one alone."""

    def whole(self, number: int) -> Run:
        """Return a pass of the base model (0) or of a merged one, in the order of `Task.model_widths` from 1 on."""


def measure(
    task: Task,
    files: Files,
    *,
    num_threads: int,
    versions: Mapping[str, str],
    progress: Progress,
    max_rounds: int = MAX_ROUNDS,
) -> dict[str, Any]:
    """Measure a table of times.

    Args:
        task: What is measured.
        files: Makes it ready to run.
        num_threads: Number of threads of the runtime.
        versions: Versions of the packages.
        progress: Is told how far it is.
        max_rounds: Number of rounds after which a spread is as it is.

    Returns:
        The table as values for JSON; see `resrep_dist.graph.latency_table.LatencyTable`.
    """
    measurement = _Measurement(task, files, progress, max_rounds)
    layers = _measure_layers(measurement)
    base, *checked = measurement.models()
    scale, constant, checks = _fitted(task, layers, checked)
    return {
        "model": task.model, "runtime": task.runtime, "batch_size": task.batch_size, "num_threads": num_threads,
        "machine": machine(), "versions": dict(versions),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "spread_bound": SPREAD_BOUND, "base_ms": base.milliseconds, "constant_ms": constant, "scale": scale,
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "checks": [dataclasses.asdict(check) for check in checks], "format": FORMAT,
    }  # fmt: skip


class _Measurement:
    """What does not change during a measurement."""

    def __init__(self, task: Task, files: Files, progress: Progress, max_rounds: int) -> None:
        self.task = task
        self._files, self._progress, self._max_rounds = files, progress, max_rounds

    def layers(self, points: Sequence[Point], what: str, *, is_for_a_sum: bool = False) -> list[Median]:
        """Return the times of layers at numbers of input and output channels."""
        runs: list[Run] = []
        before: dict[tuple[str, int], Run] = {}
        keys: list[tuple[str, int] | None] = []
        for number, point in enumerate(points):
            self._progress(f"{what}: preparing", number, len(points))
            runs.append(self._files.layer(point))
            key = (point[0].size, point[1]) if point[0].name in self.task.behind else None
            if key and key not in before:
                before[key] = self._files.before(point)
            keys.append(key)
        medians = self._times([*runs, *before.values()], what, is_for_a_sum)
        of_before = dict(zip(before, medians[len(runs) :], strict=True))
        return [time.without(of_before[key] if key else None) for time, key in zip(medians, keys, strict=False)]

    def models(self) -> list[Median]:
        """Return the times of the whole models, the base model first."""
        runs, num_models = [], 1 + len(self.task.model_widths)
        for number in range(num_models):
            self._progress("whole models: preparing", number, num_models)
            runs.append(self._files.whole(number))
        return self._times(runs, "whole models")

    def _times(self, runs: Sequence[Run], what: str, is_for_a_sum: bool = False) -> list[Median]:
        def on_round(number: int, num_open: int) -> None:
            self._progress(f"{what}: round {number}", len(runs) - num_open, len(runs))

        return time_in_turn(
            runs, spread_bound=SPREAD_BOUND, max_rounds=self._max_rounds, is_for_a_sum=is_for_a_sum, on_round=on_round
        )


def _measure_layers(measurement: _Measurement) -> list[LayerTimes]:
    calls = unequal(measurement.task.calls)
    scans = scans_of(calls)
    times = measurement.layers([point for scan in scans for point in scan.points], "blocks of channels")
    steps = _steps_by_kind(scans, [time.milliseconds for time in times])
    points: list[Point] = []
    grids = []
    for call in calls:
        # The widths of a grouped convolution are multiples of its groups, not of the blocks of others.
        is_grouped = call.num_parts > 1
        of_kind = [Steps() if is_grouped else steps.get((call.kind, side), Steps()) for side in range(2)]
        sides = grid_widths(call, of_kind)
        grids.append((call, sides, of_kind))
        points += [(call, inputs, outputs) for inputs in sides[0] for outputs in sides[1]]
    medians = iter(measurement.layers(points, f"{len(calls)} layers", is_for_a_sum=True))
    result = []
    for call, sides, of_kind in grids:
        rows = [[next(medians) for _ in sides[1]] for _ in sides[0]]
        result.append(
            LayerTimes(
                tuple(other.name for other in measurement.task.calls if other.key == call.key),
                call.signature,
                tuple(sides[0]),
                tuple(sides[1]),
                tuple(tuple(time.milliseconds for time in row) for row in rows),
                tuple(tuple(time.spread for time in row) for row in rows),
                *of_kind,
            )
        )
    return result


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


def _fitted(task: Task, layers: Sequence[LayerTimes], measured: Sequence[Median]) -> tuple[float, float, list[Check]]:
    """Return a scale and a constant by which the layers give the times of whole models, by relative errors."""
    by_key = {layer.key: layer for layer in layers}
    grids = Grids([(call, by_key[call.key]) for call in task.calls], len(task.model_widths[0]))
    sums = np.array([math.fsum(grids.times(np.asarray(widths)).tolist()) for widths in task.model_widths])
    times = np.array([time.milliseconds for time in measured])
    (scale, constant), *_ = np.linalg.lstsq(np.stack([sums / times, 1 / times], 1), np.ones(len(times)), rcond=None)
    if scale <= 0:
        _log.warning(
            "Whole models do not get slower with their layers: the times of this machine mean nothing now. Measure "
            "again when it is free."
        )
        scale, constant = 1.0, float(np.mean(times - sums))
    checks = [
        Check(widths, time.milliseconds, float(constant + scale * of_layers), time.spread)
        for widths, time, of_layers in zip(task.model_widths, measured, sums, strict=True)
    ]
    return float(scale), float(constant), checks
