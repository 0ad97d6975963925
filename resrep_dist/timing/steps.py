"""Blocks of channels: finding them in measured times, and what a width counts as with them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from .table import Steps

# Blocks of channels that runtimes have: registers of 128 to 512 bits, several of them.
_BLOCKS = (2, 4, 8, 16, 32)
_UNITS = (1, 2, 4, 8)
# Blocks are assumed only if they explain clearly more than a straight line does.
_MIN_EXPLAINED = 0.15
SIZES = (1, *_BLOCKS)
"""All sizes of blocks that may be found. Units of fast widths divide them."""


def counted_width(width: int, steps: Steps) -> float:
    """Return what a width counts as; see `Steps`.

    Args:
        width: Number of channels.
        steps: The blocks.
    """
    if width <= steps.size:
        return width
    if width % steps.unit:
        return steps.detour * width
    return width + steps.share * (-(-width // steps.size) * steps.size - width)


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
