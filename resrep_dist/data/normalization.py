"""Normalization of pixels by name: what each choice of `data.normalization` subtracts and divides by."""

import dataclasses
from collections.abc import Sequence

from resrep_dist.config import ChannelStatistics
from resrep_dist.data.augmentation import normalize

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(pixels - mean) / std for pixels from 0 to 255, in a given order of the channels."""

    mean: Sequence[float]
    """Mean of each channel, in the order in which the model receives them."""
    std: Sequence[float]
    """Standard deviation of each channel, in the same order."""
    is_bgr: bool = False
    """True if the model receives blue, green, red."""

    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """Normalize pixels.

        Args:
            pixels: [..., height, width, 3], red, green and blue from 0 to 255.

        Returns:
            float32 of the same shape.
        """
        return normalize(tf.reverse(pixels, [-1]) if self.is_bgr else pixels, self.mean, self.std)

    def pixels_of(self, images: tf.Tensor) -> tf.Tensor:
        """Return the pixels that were normalized.

        Args:
            images: Normalized images, float32 [..., height, width, channels].

        Returns:
            From 0 to 255, of the same shape and type.
        """
        pixels = tf.clip_by_value(images * tf.constant(self.std, images.dtype) + self.mean, 0.0, 255.0)
        return tf.reverse(pixels, [-1]) if self.is_bgr else pixels


IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
"""By mean and standard deviation of ImageNet's pixels."""
_NAMED = {
    "imagenet": IMAGENET,
    "zero_one": Normalization((0.0,) * 3, (255.0,) * 3),
    "minus_one_one": Normalization((127.5,) * 3, (127.5,) * 3),
    # The numbers of Keras' preprocess_input(mode="caffe").
    "caffe": Normalization((103.939, 116.779, 123.68), (1.0,) * 3, is_bgr=True),
    "none": Normalization((0.0,) * 3, (1.0,) * 3),
}


def normalization_of(choice: str | ChannelStatistics) -> Normalization | None:
    """Return the normalization of a choice.

    Args:
        choice: As in `DataConfig.normalization`.

    Returns:
        None for `data_set` and `default`, which is the data set's own.
    """
    if isinstance(choice, ChannelStatistics):
        return Normalization(choice.mean, choice.std)
    return _NAMED.get(choice)
