"""Times several things in turn, until the medians are known well enough."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

resource: ModuleType | None
try:
    import resource
except ImportError:  # on Windows
    resource = None

_MIN_SECONDS = 3e-4
# One call of TensorFlow takes up to half a millisecond.
_MIN_SECONDS_OF_PASSES = 5e-3
_MIN_SAMPLES = 7
_MAX_PASSES = 50
# Less than this part of the time on a core means that another process had it.
_MIN_CORE_SHARE = 0.95
# With several threads the time on cores says little, but another process then takes a core from them more often.
_MAX_SWITCHES_PER_SECOND = 40


@dataclasses.dataclass
class Median:
    """The median time of one thing."""

    milliseconds: float
    """Median of the samples."""
    spread: float
    """Half of the 95 % confidence interval of the median, as a fraction of it (McGill, Tukey and Larsen 1978).

    Of fewer than seven samples the range of all, and 1 of a single one, of which nothing is known.
    """

    def is_known(self, spread_bound: float, at_least: float = 0.0) -> bool:
        """Return whether the error is below the bound, as a fraction of the median or of a larger time.

        Args:
            spread_bound: The bound.
            at_least: The other time in milliseconds.
        """
        return self.spread * self.milliseconds <= spread_bound * max(self.milliseconds, at_least)

    def without(self, part: "Median | None") -> "Median":
        """Return the time of what remains if a part is taken off; a tenth of the whole at least.

        Args:
            part: The part; None for none.
        """
        if part is None:
            return self
        rest = max(self.milliseconds - part.milliseconds, 0.1 * self.milliseconds)
        errors = self.spread * self.milliseconds, part.spread * part.milliseconds
        return Median(rest, math.hypot(*errors) / rest)


@dataclasses.dataclass(frozen=True)
class Passes:
    """A function that makes many passes in one call, since a call can take longer than what it is to measure."""

    run: Callable[[int], Any]
    """Makes so many passes."""

    def __call__(self) -> Any:
        """Make one pass."""
        return self.run(1)


def time_in_turn(
    runs: Sequence[Callable[[], Any]],
    *,
    spread_bound: float,
    max_rounds: int,
    is_for_a_sum: bool = False,
    on_round: Callable[[int, int], None] = lambda number, num_open: None,
) -> list[Median]:
    """Measure the median times of several functions, one call after the other in each round.

    A sample is left out if others had the cores in between: if this process had one for less than 95 % of the time, or
    if one was taken from its threads more than 40 times per second, which only Linux tells. If fewer than seven samples
    are left, all count. A function takes part until its spread is below the bound.

    Args:
        runs: The functions.
        spread_bound: The spread that is enough.
        max_rounds: Number of rounds after which the spread is as it is.
        is_for_a_sum: True if the times are to be added up, so that the error of a short one matters little: a function
            also stops when its error is below the bound as a fraction of the mean time of all functions.
        on_round: Called after each round with its number and the number of functions that go on.

    Returns:
        The medians, in the order of `runs`.
    """
    num_passes = [_warm_up(run) for run in runs]
    clean: list[list[float]] = [[] for _ in runs]
    disturbed: list[list[float]] = [[] for _ in runs]
    going = list(range(len(runs)))
    for number in range(1, max_rounds + 1):
        for index in going:
            sample, is_clean = _sample(runs[index], num_passes[index])
            (clean if is_clean else disturbed)[index].append(sample)
        mean = _mean_of_medians(clean, disturbed) if is_for_a_sum else 0.0
        going = [
            index
            for index in going
            if len(clean[index]) < _MIN_SAMPLES or not _median(clean[index]).is_known(spread_bound, at_least=mean)
        ]
        on_round(number, len(going))
        if not going:
            break
    # On a machine that is never free all samples count: they are what is known.
    return [
        _median(good if len(good) >= _MIN_SAMPLES else [*good, *bad])
        for good, bad in zip(clean, disturbed, strict=True)
    ]


def _warm_up(run: Callable[[], Any]) -> int:
    """Call a function for the first times; return how many passes a sample has."""
    run()
    seconds = _seconds_of(run, 1)
    if not isinstance(run, Passes):
        return _passes_for(_MIN_SECONDS, seconds)
    num_passes = _passes_for(_MIN_SECONDS_OF_PASSES, seconds)
    if num_passes > 1:
        # What further passes add has not the call in it.
        seconds = (_seconds_of(run, num_passes) - seconds) / (num_passes - 1)
    return _passes_for(_MIN_SECONDS_OF_PASSES, seconds)


def _passes_for(wanted_seconds: float, seconds: float) -> int:
    return max(1, min(_MAX_PASSES, math.ceil(wanted_seconds / max(seconds, 1e-9))))


def _seconds_of(run: Callable[[], Any], num_passes: int) -> float:
    start = time.perf_counter()
    if isinstance(run, Passes):
        run.run(num_passes)
    else:
        for _ in range(num_passes):
            run()
    return time.perf_counter() - start


def _sample(run: Callable[[], Any], num_passes: int) -> tuple[float, bool]:
    run()  # what other functions have put out of the caches comes back
    switches, on_core = _num_switches(), time.process_time()
    seconds = _seconds_of(run, num_passes)
    core_seconds = time.process_time() - on_core
    had_its_cores = _num_switches() - switches <= _MAX_SWITCHES_PER_SECOND * seconds
    return 1000.0 * seconds / num_passes, had_its_cores and core_seconds >= _MIN_CORE_SHARE * seconds


def _num_switches() -> int:
    """Return how often the system took a core from a thread of this process that had work; 0 where it is not known."""
    # On macOS the number includes threads that wait of their own accord.
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource and sys.platform == "linux" else 0


def _mean_of_medians(clean: Sequence[list[float]], disturbed: Sequence[list[float]]) -> float:
    medians = [np.median([*good, *bad]) for good, bad in zip(clean, disturbed, strict=True)]
    return float(np.mean(medians))


def _median(samples: Sequence[float]) -> Median:
    least, low, median, high, most = np.percentile(samples, [0, 25, 50, 75, 100])
    error = 1.57 * (high - low) / math.sqrt(len(samples))
    if len(samples) < _MIN_SAMPLES:
        # The quartiles of few samples are near each other by chance, and one has no spread at all.
        error = most - least if len(samples) > 1 else median
    return Median(float(median), float(error / median))
