"""Which widths of a layer are measured."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from .calls import WeightedCall
from .steps import SIZES
from .table import Steps

Point = tuple[WeightedCall, int, int]
"""A layer with its numbers of input and output channels."""
_SCAN_WIDTH = 48
_WIDE_ENOUGH = 64
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
    def points(self) -> list[Point]:
        """The layer with its numbers of input and output channels, for each width."""
        inputs, outputs = self.call.full_widths
        return [(self.call, w, outputs) if self.side == 0 else (self.call, inputs, w) for w in self.widths]


def unequal(calls: Iterable[WeightedCall]) -> list[WeightedCall]:
    """Return the first of each set of calls that take equal time.

    Args:
        calls: The calls.
    """
    first: dict[tuple[str, int, int], WeightedCall] = {}
    for call in calls:
        first.setdefault(call.key, call)
    return list(first.values())


def scans_of(calls: Sequence[WeightedCall]) -> list[Scan]:
    """Return the scans for all kinds of layers: of each kind and side the narrowest layer that is wide enough.

    Args:
        calls: The layers, without equal ones.
    """
    chosen: dict[tuple[str, int], WeightedCall] = {}
    for call in calls:
        for side in range(2):
            if not call.is_scanned[side]:
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


def grid_widths(call: WeightedCall, steps: Sequence[Steps]) -> tuple[list[int], list[int]]:
    """Return the numbers of input and of output channels at which a layer is measured.

    Args:
        call: The layer.
        steps: Blocks of the inputs and of the outputs: whole ones are measured.
    """
    of_groups = call.num_parts
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


def possible_points(calls: Sequence[WeightedCall]) -> list[Point]:
    """Return all points that may have to be measured, whatever blocks of channels are found.

    Args:
        calls: The layers, without equal ones.
    """
    points = {point: None for scan in scans_of(calls) for point in scan.points}
    for call in calls:
        for sizes in itertools.product(SIZES, repeat=2):
            inputs, outputs = grid_widths(call, [Steps(size) for size in sizes])
            points |= {(call, *widths): None for widths in itertools.product(inputs, outputs)}
    return list(points)
