"""Random images of any size and number, to measure speed without a data set."""

import dataclasses

from resrep_dist.data.augmentation import augment, normalize
from resrep_dist.data.source import ImageSource

import numpy as np
import tensorflow as tf

_NUM_DIFFERENT = 64
_NUM_VALIDATION = 1024


@dataclasses.dataclass(frozen=True)
class Synthetic(ImageSource):
    """Images of noise. There are 64 different ones, in turn; the label of sample i is i modulo `num_classes`.

    Attributes:
        num_samples: Number of images.
        num_classes: Number of classes.
        image_size: Height and width of the RGB images, pixels.
    """

    num_samples: int
    num_classes: int
    image_size: int

    def __len__(self) -> int:
        return self.num_samples

    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        shape = (_NUM_DIFFERENT, self.image_size, self.image_size, 3)
        with tf.device("CPU:0"):
            pixels = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

        def batch(indices: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = augment(tf.gather(pixels, indices % _NUM_DIFFERENT), augmentation, positions, seed)
            return normalize(images, (127.5,) * 3, (73.9,) * 3), indices % self.num_classes

        return places.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def synthetic(num_samples: int, num_classes: int, image_size: int) -> tuple[Synthetic, Synthetic]:
    """Return a training set of `num_samples` images and a validation set of 1,024, of `image_size` pixels."""
    return Synthetic(num_samples, num_classes, image_size), Synthetic(_NUM_VALIDATION, num_classes, image_size)
