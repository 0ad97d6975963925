"""Times of layers at all widths, by interpolation between the measured ones."""

from collections.abc import Sequence

import numpy as np
from .calls import GroupSegments, WeightedCall
from .steps import counted_width
from .table import LayerTimes, Steps


class Grids:
    """The times of all calls at all widths, by interpolation between the measured ones, all calls at once.

    Args:
        calls: The calls, and the times of their layers.
        num_groups: Number of groups.
    """

    def __init__(self, calls: Sequence[tuple[WeightedCall, LayerTimes]], num_groups: int) -> None:
        self._inputs = _Side([(c.inputs, t.input_widths, t.input_steps) for c, t in calls], num_groups)
        self._outputs = _Side([(c.output, t.output_widths, t.output_steps) for c, t in calls], num_groups)
        # One more row and column, which have no weight, so that the last width has a neighbor.
        times = [np.pad(_never_falling(np.asarray(t.milliseconds)), ((0, 1), (0, 1)), "edge") for _, t in calls]
        self._strides = np.array([grid.shape[1] for grid in times])
        self._starts = np.cumsum([0, *(grid.size for grid in times[:-1])])
        self._times = np.concatenate([grid.ravel() for grid in times])

    def times(self, widths: np.ndarray) -> np.ndarray:
        """Return the time of each call, ms [number of calls].

        Args:
            widths: Number of channels of each group.
        """
        (row, down), (column, right) = self._inputs.places(widths), self._outputs.places(widths)
        upper = self._starts + row * self._strides + column
        lower, times = upper + self._strides, self._times
        above = times[upper] + right * (times[upper + 1] - times[upper])
        below = times[lower] + right * (times[lower + 1] - times[lower])
        return above + down * (below - above)


class _Side:
    """The inputs or the outputs of all calls: how many channels they have, and where that is in their grids."""

    def __init__(self, calls: Sequence[tuple[GroupSegments, Sequence[int], Steps]], num_groups: int) -> None:
        self._counts, self._fixed = np.zeros((len(calls), num_groups), int), np.zeros(len(calls), int)
        for number, (segments, _, _) in enumerate(calls):
            for group, width in segments:
                if group is None:
                    self._fixed[number] += width
                else:
                    self._counts[number, group] += 1
        places = [_places(measured, steps) for _, measured, steps in calls]
        self._starts = np.cumsum([0, *(len(of_call) for of_call in places[:-1])])
        self._before = np.array([before for of_call in places for before, _ in of_call])
        self._beyond = np.array([beyond for of_call in places for _, beyond in of_call])

    def places(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each call the measured width before its own, and how far it is on the way to the next."""
        index = self._starts + self._fixed + self._counts @ widths
        return self._before[index], self._beyond[index]


def _never_falling(times: np.ndarray) -> np.ndarray:
    """Return the mean of the longest of all narrower and the shortest of all wider layers, [inputs, outputs]."""
    longest = np.maximum.accumulate(np.maximum.accumulate(times, 0), 1)
    backwards = times[::-1, ::-1]
    shortest = np.minimum.accumulate(np.minimum.accumulate(backwards, 0), 1)[::-1, ::-1]
    return (longest + shortest) / 2


def _places(measured: Sequence[int], steps: Steps) -> list[tuple[int, float]]:
    """Return for each width from 0 up the measured one before it, and how far it is on the way to the next."""
    positions = [counted_width(width, steps) for width in measured]
    last, result = len(positions) - 1, []
    for width in range(measured[-1] + 1):
        counted = counted_width(width, steps)
        place = float(np.interp(counted, positions, range(last + 1)))
        before = int(place)
        if counted > positions[-1] and last > 0:
            # By a detour, more than the full width: on the line through the last two.
            before, place = last - 1, last + (counted - positions[-1]) / (positions[-1] - positions[-2])
        result.append((before, place - before))
    return result
