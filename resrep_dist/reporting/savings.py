"""What shrinking saved during the training of a run, from its curves."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_FRACTIONS = "shrink/training_macs_fraction"
_STEP_SECONDS = "time/step_seconds"
_PAUSES = ("shrink/build_seconds", "shrink/tracing_seconds")
# Of the multiply-adds of a step: the backward pass has twice as many.
_FORWARD_FRACTION = 1 / 3
Curve = Sequence[tuple[int, float]]
"""Step and value of each point, by ascending step."""


def savings_of(
    curves: Mapping[str, Curve], first_fraction: float, num_steps: int, *, has_teacher: bool = False
) -> dict[str, Any]:
    """Return the cost of a pruning phase.

    Args:
        curves: The curves of the phase.
        first_fraction: Multiply-adds of a step before the first shrink, compactors counted, as a fraction of those of
            the base model.
        num_steps: Number of steps made.
        has_teacher: True if in each step the base model, too, computed its outputs.

    Returns:
        `macs_vs_plain`: the multiply-adds of all steps, as a fraction of those that plain training of the base model
        takes for as many. Where the model became smaller and the curves have times for it, also `first_step_seconds`
        and `last_step_seconds`, the median times of a step before the first and after the last shrink, and
        `saved_seconds`: what all steps would have taken longer at the first time, less the time of the shrinks.
    """
    sizes = [(0, first_fraction), *((step, value) for step, value in curves.get(_FRACTIONS, []) if step < num_steps)]
    ends = [step for step, _ in sizes[1:]] + [num_steps]
    counts = [end - start for (start, _), end in zip(sizes, ends, strict=True)]
    cost = sum(count * fraction for count, (_, fraction) in zip(counts, sizes, strict=True))
    savings = {"macs_vs_plain": cost / num_steps + (_FORWARD_FRACTION if has_teacher else 0)}
    times = [_median_seconds(curves, start, end) for (start, _), end in zip(sizes, ends, strict=True)]
    if len(sizes) == 1 or times[0] is None or times[-1] is None:
        return savings
    # A size that no logging step fell into has the time of the one before.
    known = [times[0]]
    for seconds in times[1:]:
        known.append(known[-1] if seconds is None else seconds)
    pauses = sum(value for tag in _PAUSES for step, value in curves.get(tag, []) if step < num_steps)
    saved = sum(count * (known[0] - seconds) for count, seconds in zip(counts, known, strict=True)) - pauses
    return savings | {"first_step_seconds": known[0], "last_step_seconds": known[-1], "saved_seconds": saved}


def describe_savings(savings: Mapping[str, Any]) -> str:
    """Return the cost of a pruning phase in one sentence.

    Args:
        savings: See `savings_of`.
    """
    text = f"Training took {100 * savings['macs_vs_plain']:.0f} % of the multiply-adds of plain training"
    if "saved_seconds" not in savings:
        return f"{text}."
    first, last = (1000 * savings[f"{name}_step_seconds"] for name in ("first", "last"))
    difference = savings["saved_seconds"]
    saved = f"{_duration(abs(difference))} {'saved' if difference >= 0 else 'lost'}"
    return f"{text}; a step took {first:.0f} ms at first and {last:.0f} ms at the end, {saved}."


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"


def _median_seconds(curves: Mapping[str, Curve], start: int, end: int) -> float | None:
    """Return the median time of a step between two steps; None without a point."""
    values = [value for step, value in curves.get(_STEP_SECONDS, []) if start < step <= end]
    # The first mean also has steps from before, or the first step, which is compiled.
    return statistics.median(values[1:] or values) if values else None
