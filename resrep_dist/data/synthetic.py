"""Random images of any size and number, to measure speed without a data set."""

import dataclasses

from resrep_dist.data.augmentation import augment
from resrep_dist.data.batches import NUM_PARALLEL_BATCHES
from resrep_dist.data.normalization import Normalization
from resrep_dist.data.source import ImageSource

import numpy as np
import tensorflow as tf

_NUM_DIFFERENT = 64
_NUM_VALIDATION = 1024
_OWN = Normalization((127.5,) * 3, (73.9,) * 3)


@dataclasses.dataclass(frozen=True)
class Synthetic(ImageSource):
    """Images of noise. There are 64 different ones, in turn; the label of sample i is i modulo `num_classes`.

    Attributes:
        num_samples: Number of images.
        num_classes: Number of classes.
        image_size: Height and width of the RGB images, pixels.
        normalization: Scale of the pixels.
    """

    num_samples: int
    num_classes: int
    image_size: int
    normalization: Normalization = _OWN

    def __len__(self) -> int:
        return self.num_samples

    def pixel_scale(self) -> Normalization | None:
        return self.normalization

    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        shape = (_NUM_DIFFERENT, self.image_size, self.image_size, 3)
        with tf.device("CPU:0"):
            pixels = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

        def batch(indices: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = augment(tf.gather(pixels, indices % _NUM_DIFFERENT), augmentation, positions, seed)
            return self.normalization(images), indices % self.num_classes

        return places.map(batch, num_parallel_calls=NUM_PARALLEL_BATCHES, deterministic=True)


def synthetic(
    num_samples: int, num_classes: int, image_size: int, normalization: Normalization | None = None
) -> tuple[Synthetic, Synthetic]:
    """Return a training set of `num_samples` images and a validation set of 1,024, of `image_size` pixels.

    Args:
        num_samples: Number of training images.
        num_classes: Number of classes.
        image_size: Height and width of the RGB images, pixels.
        normalization: Scale of the pixels. None for mean 0 and deviation 1.
    """
    sizes = (num_samples, _NUM_VALIDATION)
    train, validation = (Synthetic(size, num_classes, image_size, normalization or _OWN) for size in sizes)
    return train, validation
