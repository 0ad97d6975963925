"""Where the time of a step goes, as far as the host sees it without asking the device."""

import time
from collections.abc import Iterable, Iterator
from typing import Any


class StepTimer:
    """Clocks the steps of one phase; pauses, such as a checkpoint, are not part of them."""

    def __init__(self, global_batch_size: int) -> None:
        self._global_batch_size = global_batch_size
        self._step, self._start, self._data_seconds, self._paused_seconds = 0, time.monotonic(), 0.0, 0.0

    def start(self, step: int) -> None:
        """Measure from here."""
        self._step, self._start, self._data_seconds, self._paused_seconds = step, time.monotonic(), 0.0, 0.0

    def clocked(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; the time until each is there is noted."""
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
        """Leave out so much time that was spent on something else."""
        self._paused_seconds += seconds

    def read(self, step: int) -> dict[str, float]:
        """Means of a step since the last call: seconds of all of it and of waiting for data, images per second."""
        num_steps = max(1, step - self._step)
        seconds = max(time.monotonic() - self._start - self._paused_seconds, 1e-9) / num_steps
        data_seconds = self._data_seconds / num_steps
        self.start(step)
        return {
            "time/step_seconds": seconds,
            "time/data_seconds": data_seconds,
            "train/images_per_second": self._global_batch_size / seconds,
        }
