"""The batches of a rank, which name the sample that cannot be read, and go on where a read failed once."""

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from resrep_dist.errors import SampleError

import numpy as np
import tensorflow as tf

_log = logging.getLogger(__name__)
_MAX_RETRIES = 3
# A network disk may be away for some seconds; all ranks wait for this one meanwhile.
_PAUSES_SECONDS = (1.0, 5.0, 20.0)
NUM_PARALLEL_BATCHES = 4
"""Number of batches that a stage works on at once, each held in memory. With tf.data.AUTOTUNE there are as many as
threads, up to 16: with batches of 39 MB a process had 1.4 GB in place of 0.9."""


class Samples(Protocol):
    """What can name its samples and read them alone, such as an `ImageSource`."""

    def check(self, index: int) -> None:
        """Read a sample; raises TensorFlow's error if it cannot be read."""

    def describe(self, index: int) -> str:
        """Return where a sample is stored."""


class Batches:
    """Batches in their order, each time from the first.

    Batches that can be read take no extra time. The samples of a batch that cannot are read again, one by one, with
    pauses for a disk or a network that is away for a moment. If one of them fails all the same, the error names it. If
    all can be read, so is the batch.

    Args:
        dataset_from: Returns the batches from a number on, counted from 0.
        source: Their source, which names its samples.
        indices_of: Returns the indices of the samples of a batch, given its number.
        read_indices_of: The same of all samples that are read for it, if they are more. None for `indices_of`.
    """

    def __init__(
        self,
        dataset_from: Callable[[int], tf.data.Dataset],
        source: Samples,
        indices_of: Callable[[int], Sequence[int] | np.ndarray],
        read_indices_of: Callable[[int], Sequence[int] | np.ndarray] | None = None,
    ) -> None:
        self._dataset_from, self._source, self.indices_of = dataset_from, source, indices_of
        self._read_indices_of = read_indices_of or indices_of

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._dataset_from(0))
        for number in itertools.count():
            for num_failures in itertools.count(1):
                try:
                    batch = next(iterator)
                    break
                except StopIteration:
                    return
                except tf.errors.OpError as error:
                    self._explain(number, error, is_last=num_failures > _MAX_RETRIES)
                    iterator = iter(self._dataset_from(number))
            yield batch

    def _explain(self, number: int, error: tf.errors.OpError, is_last: bool) -> None:
        """Raise a SampleError for a sample that cannot be read; warn if all can be read now."""
        indices = self._read_indices_of(number)
        for index in indices:
            try:
                self._check(int(index))
            except tf.errors.OpError as cause:
                name = self._source.describe(int(index))
                raise SampleError(f"{name}: {_reason(cause)}; fix or replace the file") from None
        first, num_others = self._source.describe(int(indices[0])), len(indices) - 1
        problem = f"{first} and the {num_others} samples after it: one could not be read ({_reason(error)}), but "
        if is_last:
            raise SampleError(
                f"{problem}each can be read alone; this happened {_MAX_RETRIES + 1} times in a row. Check the disk and "
                "the network, and start the same command again to resume"
            ) from None
        # Of an error's severity, so that it is shown on every rank.
        _log.error("%sall can be read now; they are read again. Check the disk and the network.", problem)

    def _check(self, index: int) -> None:
        for pause_seconds in (*_PAUSES_SECONDS, None):
            try:
                return self._source.check(index)
            except (tf.errors.InvalidArgumentError, tf.errors.DataLossError):
                # What was read is no image, and will be none later.
                raise
            except tf.errors.OpError as error:
                if pause_seconds is None:
                    raise
                _log.error("%s: %s; trying again in %g s.", self._source.describe(index), _reason(error), pause_seconds)
                time.sleep(pause_seconds)


def _reason(error: tf.errors.OpError) -> str:
    """Return TensorFlow's message without the names of its nodes, on one line."""
    noise = (
        r"\{\{[^}]*\}\}|\[\[.*?\]\]|\[Op:[^\]]*\]( name:)?|"
        r"Error in user-defined function passed to \S+ transformation with iterator: \S+: "
    )
    text = re.sub(noise, " ", error.message, flags=re.DOTALL)
    return " ".join(text.split())[:200] or type(error).__name__
