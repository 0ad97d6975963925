"""Which widths of a layer are measured, and layers of these widths."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.latency import counted_width
from resrep_dist.graph.latency_table import Steps
from resrep_dist.graph.signatures import WeightedCall

import numpy as np
from tensorflow import keras

# Blocks of channels that runtimes have: registers of 128 to 512 bits, several of them.
_BLOCKS = (2, 4, 8, 16, 32)
_UNITS = (1, 2, 4, 8)
_SCAN_WIDTH = 48
_WIDE_ENOUGH = 64
_NUM_CHEAP_CHANNELS = 16
# Blocks are assumed only if they explain clearly more than a straight line does.
_MIN_EXPLAINED = 0.15
# Parts of the full width at which a layer is measured: of both sides, and of one side alone.
_PARTS = {2: (0.25, 0.5, 0.75, 1.0), 1: (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)}


@dataclasses.dataclass(frozen=True)
class Scan:
    """Neighboring widths of one side of a layer, by which blocks of channels are found."""

    call: WeightedCall
    """The layer, one of its kind."""
    side: int
    """0 for its input channels, 1 for its output channels."""
    widths: tuple[int, ...]
    """The widths."""

    @property
    def kind(self) -> str:
        """Kind of the layer, see `WeightedCall.kind`."""
        return self.call.kind

    @property
    def points(self) -> list[tuple[WeightedCall, int, int]]:
        """The layer with its numbers of input and output channels, for each width."""
        inputs, outputs = self.call.full_widths
        return [(self.call, w, outputs) if self.side == 0 else (self.call, inputs, w) for w in self.widths]


def layer_at(layer: Any, call: WeightedCall, inputs: int, outputs: int, *, behind_another: bool = False) -> keras.Model:
    """Return a layer of other widths with a bias, between an input and a ReLU, as in a merged model.

    Args:
        layer: The layer.
        call: Its call.
        inputs: Number of input channels.
        outputs: Number of output channels; not used if the layer treats every channel alone.
        behind_another: True to put it behind `cheap_layer`.
    """
    config = {**layer.get_config(), "name": "layer", "use_bias": True, "activation": None}
    config.pop("batch_input_shape", None)
    for name in ("filters", "units"):
        if name in config:
            config[name] = inputs if call.is_per_channel else outputs
    if call.is_per_channel and "groups" in config:
        config["groups"] = inputs
    clone = keras.layers.ReLU(), type(layer).from_config(config)
    if behind_another:
        before = cheap_layer(call, inputs)
        return keras.Model(before.input, clone[0](clone[1](before.output)))
    images = keras.Input((*json.loads(call.signature)["size"], inputs))
    return keras.Model(images, clone[0](clone[1](images)))


def cheap_layer(call: WeightedCall, inputs: int) -> keras.Model:
    """Return a 1x1 convolution of few channels with a ReLU, whose outputs are the inputs of a layer.

    Args:
        call: The call of the layer, on images.
        inputs: Number of its input channels.
    """
    images = keras.Input((*json.loads(call.signature)["size"], _NUM_CHEAP_CHANNELS))
    return keras.Model(images, keras.layers.ReLU()(keras.layers.Conv2D(inputs, 1, name="before")(images)))


def scans_of(calls: Sequence[WeightedCall]) -> list[Scan]:
    """Return the scans for all kinds of layers: of each kind and side the narrowest layer that is wide enough.

    Args:
        calls: The layers, without equal ones.
    """
    chosen: dict[tuple[str, int], WeightedCall] = {}
    for call in calls:
        for side in range(2):
            if not call.changes[side] or json.loads(call.signature).get("groups", 1) > 1:
                continue
            before = chosen.get((call.kind, side))
            if before is None or _fitness(call, side) < _fitness(before, side):
                chosen[call.kind, side] = call
    scans = []
    for (_, side), call in chosen.items():
        full = call.full_widths[side]
        scans.append(Scan(call, side, tuple(range(max(1, full - _SCAN_WIDTH + 1), full + 1))))
    return scans


def _fitness(call: WeightedCall, side: int) -> tuple[bool, int]:
    full = call.full_widths[side]
    return (full < _WIDE_ENOUGH, full if full >= _WIDE_ENOUGH else -full)


def find_steps(widths: Sequence[int], milliseconds: Sequence[float]) -> Steps:
    """Return the blocks of channels, and the unit of fast widths, that explain times best.

    Args:
        widths: Neighboring widths.
        milliseconds: Their times.
    """
    columns = np.asarray(widths), np.asarray(milliseconds)
    straight, steps = _fitted(*columns, Steps())
    for unit in _UNITS:
        best = steps, straight
        for size in (block for block in _BLOCKS if 3 * block <= 2 * len(widths) and block % unit == 0):
            for share in np.linspace(0.0 if unit > 1 else 0.1, 1.0, 11 if unit > 1 else 10):
                unexplained, fitted = _fitted(*columns, Steps(size, round(float(share), 1), unit))
                best = min(best, (fitted, unexplained), key=lambda pair: pair[1])
        # Each further assumption must explain clearly more.
        if best[1] < (1 - _MIN_EXPLAINED) * straight:
            steps, straight = best
    return steps


def _fitted(widths: np.ndarray, times: np.ndarray, steps: Steps) -> tuple[float, Steps]:
    """Return the sum of what a straight line in the counted widths leaves unexplained, and the steps with a detour."""
    is_slow = (widths % steps.unit != 0) & (widths > steps.size)
    counted = np.array([counted_width(int(width), steps) for width in widths])
    design = np.stack([counted, np.ones(len(counted))], 1)
    (slope, start), *_ = np.linalg.lstsq(design[~is_slow], times[~is_slow], rcond=None)
    if is_slow.any():
        detour = float(np.median((times - start)[is_slow] / (slope * widths[is_slow]))) if slope > 0 else 1.0
        steps = dataclasses.replace(steps, detour=round(max(1.0, detour), 2))
        counted[is_slow] = steps.detour * widths[is_slow]
    # By absolute values, so that single times that were disturbed count for less.
    return float(np.abs(times - start - slope * counted).sum()), steps


def grid_widths(call: WeightedCall, steps: Sequence[Steps]) -> tuple[list[int], list[int]]:
    """Return the numbers of input and of output channels at which a layer is measured.

    Args:
        call: The layer.
        steps: Blocks of the inputs and of the outputs: whole ones are measured.
    """
    of_groups = json.loads(call.signature).get("groups", 1)
    sides = []
    for side in range(2):
        full = call.full_widths[side]
        if not call.changes[side]:
            sides.append([full])
            continue
        unit = math.lcm(steps[side].size, steps[side].unit, of_groups)
        parts = [math.ceil(part * full / unit) * unit for part in _PARTS[sum(call.changes)]]
        # Below one block a runtime may compute in another way, which matters where a layer has few blocks.
        below = [unit * part // 4 for part in ((2,) if sum(call.changes) == 2 and full >= 8 * unit else (1, 2, 3))]
        least = [unit, *(width for width in below if width > 0 and width % of_groups == 0)]
        sides.append(sorted({min(full, width) for width in (*least, *parts)} | {full}))
    return sides[0], sides[1]
