"""Measures where the time of a step goes, as far as the host can see it without waiting for the device."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_log = logging.getLogger(__name__)
_MAX_DATA_FRACTION = 0.05
# A warning needs this many logging steps in a row that waited; the first one waits until the buffers are full.
_PATIENCE = 3


class StepTimer:
    """Measures the steps of one phase. Pauses, such as evaluations, do not count.

    Args:
        global_batch_size: Number of samples per step, over all ranks.
    """

    def __init__(self, global_batch_size: int) -> None:
        self._global_batch_size = global_batch_size
        self._step, self._start, self._data_seconds, self._paused_seconds = 0, time.monotonic(), 0.0, 0.0

    def start(self, step: int) -> None:
        """Measure from here.

        Args:
            step: Number of steps made.
        """
        self._step, self._start, self._data_seconds, self._paused_seconds = step, time.monotonic(), 0.0, 0.0

    def clocked(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Return the same batches, measuring the time until each is available.

        Args:
            batches: The batches that this rank trains on.
        """
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._data_seconds += time.monotonic() - start
            yield batch

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent on steps.

        Args:
            seconds: The time.
        """
        self._paused_seconds += seconds

    def read(self, step: int) -> dict[str, float]:
        """Return means per step since the last call.

        Args:
            step: Number of steps made.

        Returns:
            By tag: the time of a step and the time of waiting for data, seconds, and the images per second of all
            ranks.
        """
        num_steps = max(1, step - self._step)
        seconds = max(time.monotonic() - self._start - self._paused_seconds, 1e-9) / num_steps
        data_seconds = self._data_seconds / num_steps
        self.start(step)
        return {
            "time/step_seconds": seconds,
            "time/data_seconds": data_seconds,
            "train/images_per_second": self._global_batch_size / seconds,
        }


class DataWait:
    """Warns once of a phase whose steps wait for their data."""

    def __init__(self) -> None:
        self._num_in_a_row, self._is_said = 0, False

    def see(self, step: int, times: Mapping[str, float]) -> None:
        """Look at the times of a logging step.

        Args:
            step: Number of steps made.
            times: What `StepTimer.read` returned.
        """
        fraction = times["time/data_seconds"] / times["time/step_seconds"]
        self._num_in_a_row = self._num_in_a_row + 1 if fraction > _MAX_DATA_FRACTION else 0
        if self._num_in_a_row >= _PATIENCE and not self._is_said:
            self._is_said = True
            _log.warning(
                "Step %d: %.0f %% of a step is spent waiting for data, more than %.0f %%; measure the data by `resrep "
                "benchmark data CONFIG`, and give each rank more processor cores, a faster disk or smaller files.",
                step, 100 * fraction, 100 * _MAX_DATA_FRACTION,
            )  # fmt: skip
