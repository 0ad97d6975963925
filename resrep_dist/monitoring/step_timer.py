"""Measures where the time of a step goes, as far as the host can see it without waiting for the device."""

import time
from collections.abc import Iterable, Iterator
from typing import Any


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
