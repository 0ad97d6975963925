"""What a data source with random access is, and the one that holds its images in memory."""

import abc
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resrep_dist.data.augmentation import augment, normalise
from resrep_dist.errors import DataError, SampleError

import numpy as np
import tensorflow as tf


class ImageSource(abc.ABC):
    """Labelled images, each at an index in [0, len(source)).

    Which sample comes when is no business of a source: `order.py` decides it for all of them.

    Attributes:
        num_classes: labels are 0 <= label < num_classes.
    """

    num_classes: int

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        """Turn places into batches, in the same order.

        Args:
            places: pairs of int64 [batch_size] (the last may be smaller): the sample's index, and its
                position in training, from which alone its augmentation follows.
            augmentation: as in `DataConfig.augmentation`; "none" is how images are evaluated.

        Returns:
            Pairs of float32 [batch_size, height, width, channels] and int64 [batch_size].
        """

    def check(self, index: int) -> None:
        """Read one sample as evaluation does; raises TensorFlow's error if it cannot be read."""
        place = tf.data.Dataset.from_tensors((tf.constant([index], tf.int64), tf.constant([index], tf.int64)))
        for _ in self.load(place, 1, "none", 0):
            pass

    def describe(self, index: int) -> str:
        """Where a sample lies, for an error."""
        return f"sample {index}"

    def first_images(self, num_images: int) -> np.ndarray:
        """The first images as evaluation sees them: [num_images or fewer, height, width, channels]."""
        num_images = min(num_images, len(self))
        indices = np.arange(num_images)
        places = tf.data.Dataset.from_tensor_slices((indices, indices)).batch(32)
        batches = self.load(places, 32, "none", 0)
        named = NamedErrors(batches, self, lambda number: indices[32 * number : 32 * (number + 1)])
        return np.concatenate([images.numpy() for images, _ in named])


@dataclasses.dataclass(frozen=True)
class Source(ImageSource):
    """Images in memory.

    Attributes:
        images: [N, height, width, channels], normalised; or pixels, with mean and std.
        labels: int64 [N], 0 <= label < num_classes.
        mean, std: per channel, in pixel values; without them the images are used as they are.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or len(self.images) == 0:
            raise DataError(f"expected as many images as labels, received {len(self.images)}, {len(self.labels)}")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise DataError(
                f"expected labels from 0 to {self.num_classes - 1}, "
                f"received {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        images, labels = self._tensors

        def batch(indices: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Crops pad with 0, which is black only before the mean is taken off.
            chosen = augment(tf.gather(images, indices), augmentation, positions, seed)
            if self.mean is not None and self.std is not None:
                chosen = normalise(chosen, self.mean, self.std)
            return chosen, tf.gather(labels, indices)

        return places.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return tf.constant(self.images), tf.constant(self.labels, tf.int64)


class NamedErrors:
    """The batches of a dataset; where one cannot be read, the error names the sample.

    Nothing is checked while all goes well: the samples of a batch that failed are read again, one by one.

    Args:
        indices_of: the samples of the batch with a given number, counted from 0.
    """

    def __init__(
        self, dataset: tf.data.Dataset, source: ImageSource, indices_of: Callable[[int], Sequence[int] | np.ndarray]
    ) -> None:
        self._dataset, self._source, self.indices_of = dataset, source, indices_of

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._dataset)
        for number in itertools.count():
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                raise self._explain(self.indices_of(number), error) from None
            yield batch

    def _explain(self, indices: Sequence[int] | np.ndarray, error: tf.errors.OpError) -> SampleError:
        for index in indices:
            try:
                self._source.check(int(index))
            except tf.errors.OpError as cause:
                return SampleError(f"{self._source.describe(int(index))}: {_reason(cause)}; mend or replace the file")
        first = self._source.describe(int(indices[0]))
        return SampleError(
            f"{first} and the {len(indices) - 1} samples after it: one could not be read ({_reason(error)}), but all "
            "can be read now; look for a failing disk or network, and start the same command again to resume"
        )


def _reason(error: tf.errors.OpError) -> str:
    """TensorFlow's message without the names of its nodes, on one line."""
    noise = (
        r"\{\{[^}]*\}\}|\[\[.*?\]\]|\[Op:[^\]]*\]( name:)?|"
        r"Error in user-defined function passed to \S+ transformation with iterator: \S+: "
    )
    text = re.sub(noise, " ", error.message, flags=re.DOTALL)
    return " ".join(text.split())[:200] or type(error).__name__
