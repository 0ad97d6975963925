"""The interface of a data source with random access, and the source of images in memory."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from resrep_dist.data.augmentation import augment, normalize
from resrep_dist.data.batches import NUM_PARALLEL_BATCHES, Batches
from resrep_dist.data.labels import require_numbers, with_no_class
from resrep_dist.data.normalization import Normalization
from resrep_dist.errors import DataError

import numpy as np
import tensorflow as tf

_NUM_FINGERPRINT_IMAGES = 2048
_TASK_OF_NUM_AXES = {1: "classification", 2: "multilabel", 3: "segmentation"}


class ImageSource(abc.ABC):
    """Labeled images, each with an index in [0, len(source)).

    The order in which samples are used is not that of the source; `order.py` decides it for all sources.

    Attributes:
        num_classes: Number of classes; labels are 0 <= label < num_classes.
        task: What the labels say: `classification`, `multilabel` or `segmentation`.
    """

    num_classes: int
    task = "classification"

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        """Load batches of samples in a given order.

        Args:
            places: For each batch a pair of int64 [batch_size] (the last may be smaller): the indices of the samples
                and their positions in training. The augmentation of a sample depends on its position only.
            batch_size: Number of samples per batch.
            augmentation: As in `DataConfig.augmentation`; "none" for evaluation.
            seed: Seed of the augmentation.

        Returns:
            Pairs (images, labels), float32 [batch_size, height, width, channels] and int64 [batch_size]; for
            `multilabel` [batch_size, num_classes], for `segmentation` [batch_size, height, width].
        """

    def check(self, index: int) -> None:
        """Read one sample as for evaluation.

        Raises:
            tf.errors.OpError: If it cannot be read.
        """
        place = tf.data.Dataset.from_tensors((tf.constant([index], tf.int64), tf.constant([index], tf.int64)))
        for _ in self.load(place, 1, "none", 0):
            pass

    def pixel_scale(self) -> Normalization | None:
        """Return what pixels from 0 to 255 are normalized by; None if that is not known."""
        return None

    def describe(self, index: int) -> str:
        """Return where a sample is stored, for an error message."""
        return f"sample {index}"

    def fingerprint(self) -> dict[str, Any]:
        """Describe the samples and their order, which must not change within a run.

        Returns:
            JSON values by names that a user understands; checksums for what is long. Samples that are moved to another
            folder have the same.
        """
        return {"number of samples": len(self), "number of classes": self.num_classes}

    def first_images(self, num_images: int) -> np.ndarray:
        """Load the first images as for evaluation.

        Args:
            num_images: Maximum number of images.

        Returns:
            float32 [min(num_images, len(self)), height, width, channels].

        Raises:
            SampleError: If one of them cannot be read.
        """
        return self.images_at(np.arange(min(num_images, len(self))))

    def images_at(self, indices: np.ndarray) -> np.ndarray:
        """Load images as for evaluation.

        Args:
            indices: Indices of at least one sample, int64 [N].

        Returns:
            float32 [N, height, width, channels].

        Raises:
            SampleError: If one of them cannot be read.
        """

        def batches_from(number: int) -> tf.data.Dataset:
            places = tf.data.Dataset.from_tensor_slices((indices[32 * number :],) * 2).batch(32)
            return self.load(places, 32, "none", 0)

        batches = Batches(batches_from, self, lambda number: indices[32 * number : 32 * (number + 1)])
        return np.concatenate([images.numpy() for images, _ in batches])


@dataclasses.dataclass(frozen=True)
class Source(ImageSource):
    """Images in memory.

    Attributes:
        images: [N, height, width, channels]: normalized, or pixels if mean and std are given. The channels are in the
            order in which the model receives them.
        labels: int64 [N], 0 <= label < num_classes; for `multilabel` 0 or 1, [N, num_classes]; for `segmentation`
            [N, height, width], where 255 or -1 stands for no class; 255 becomes -1.
        num_classes: Number of classes.
        mean: Mean of each channel, in the unit of the images. None to use the images as they are.
        std: Standard deviation of each channel, in the unit of the images. None to use the images as they are.
        scale: What pixels from 0 to 255 are normalized by: of normalized images, and of integers in the order blue,
            green, red. None for integers in the order red, green, blue, or if that is not known.

    Raises:
        DataError: If there are no images, not as many images as labels, or labels that are no classes, texts or one-hot
            ones for example.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    scale: Normalization | None = None

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise DataError("the set is empty; expected at least one image with its label")
        require_finite(self.images, "the set")
        if len(self.images) != len(self.labels):
            raise DataError(f"expected as many images as labels, received {len(self.images)}, {len(self.labels)}")
        require_numbers(self.labels)
        if self.labels.ndim not in _TASK_OF_NUM_AXES:
            raise DataError(
                f"labels of shape {list(self.labels.shape)}, expected [N], [N, num_classes] or [N, height, width]"
            )
        if self.task == "multilabel" and self.labels.shape[1] != self.num_classes:
            raise DataError(
                f"labels of shape {list(self.labels.shape)}, expected [N, {self.num_classes}] for several labels; "
                "one-hot labels become classes by labels.argmax(-1), a column of classes by labels[:, 0]"
            )
        if self.task == "segmentation":
            object.__setattr__(self, "labels", with_no_class(self.labels, self.num_classes))
        lowest = -1 if self.task == "segmentation" else 0
        highest = 1 if self.task == "multilabel" else self.num_classes - 1
        if self.labels.min() < lowest or self.labels.max() > highest:
            raise DataError(f"expected labels from 0 to {highest}, received {self.labels.min()} to {self.labels.max()}")
        if not np.array_equal(self.labels, np.asarray(self.labels, np.int64)):
            raise DataError(f"expected whole numbers as labels, received {self.labels.dtype} with fractions")

    @property
    def task(self) -> str:  # type: ignore[override]
        """What the labels say, by their shape."""
        return _TASK_OF_NUM_AXES[self.labels.ndim]

    def __len__(self) -> int:
        return len(self.images)

    def pixel_scale(self) -> Normalization | None:
        # Mean and deviation alone do not say the order of the channels.
        if self.scale is not None or self.mean is None or self.std is None:
            return self.scale
        return Normalization(self.mean, self.std) if np.issubdtype(self.images.dtype, np.integer) else None

    def fingerprint(self) -> dict[str, Any]:
        # All pixels of a large set would take minutes.
        chosen = np.linspace(0, len(self) - 1, min(len(self), _NUM_FINGERPRINT_IMAGES)).astype(np.int64)
        return {
            **super().fingerprint(),
            "shape of the images": list(self.images.shape[1:]),
            "checksum of the labels": checksum_of(self.labels),
            "checksum of the images": checksum_of(self.images[chosen]),
        }

    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        images, labels = self._tensors

        def batch(indices: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Padding with 0 is black only before the mean is subtracted.
            chosen, of_chosen = tf.gather(images, indices), tf.cast(tf.gather(labels, indices), tf.int64)
            if self.task == "segmentation":
                # The same pixels; what is padded has no class.
                of_chosen = augment(of_chosen[..., tf.newaxis], augmentation, positions, seed, padding=-1)[..., 0]
            chosen = augment(chosen, augmentation, positions, seed)
            if self.mean is not None and self.std is not None:
                chosen = normalize(chosen, self.mean, self.std)
            return chosen, of_chosen

        return places.map(batch, num_parallel_calls=NUM_PARALLEL_BATCHES, deterministic=True)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            # Masks are as large as images.
            fits = self.task != "classification" and self.num_classes <= 128
            return tf.constant(self.images), tf.constant(self.labels, tf.int8 if fits else tf.int64)


def require_finite(images: np.ndarray, name: str) -> None:
    """Check that images hold no NaN and no infinity: a batch with one would be skipped, and its class never learned.

    Args:
        images: [N, ...].
        name: What they are, for the message.

    Raises:
        DataError: If they do. The message names the first such image.
    """
    # The least and the largest value of an array with a NaN are NaN.
    if not np.issubdtype(images.dtype, np.floating) or np.isfinite([images.min(), images.max()]).all():
        return
    bad = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
    raise DataError(
        f"{name}: {len(bad)} of {len(images)} images hold NaN or infinity, the first is image {bad[0]}; mend them or "
        "leave them out"
    )


def checksum_of(values: np.ndarray | Sequence[str]) -> str:
    """Return the SHA-256 checksum of an array, or of names in their order, hexadecimal, the first 16 digits."""
    if isinstance(values, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:16]
    return hashlib.sha256("\0".join(values).encode("utf-8", "surrogateescape")).hexdigest()[:16]
