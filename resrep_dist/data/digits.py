"""The 1,797 handwritten digits (UCI) that are part of scikit-learn."""

from resrep_dist.data.normalization import Normalization
from resrep_dist.data.source import Source

import numpy as np
import tensorflow as tf


def digits(image_size: int) -> tuple[Source, Source]:
    """Load the digits, normalized, with three equal channels.

    Args:
        image_size: Height and width to which the images of 8 pixels are resized, pixels.

    Returns:
        Training set (1,437 images) and validation set (360, every fifth image).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = tf.image.resize(bunch.images[..., np.newaxis].astype(np.float32), [image_size, image_size]).numpy()
    # The brightest of 16 levels is 16.
    scale = Normalization((float(images.mean()) * 255 / 16,) * 3, (float(images.std()) * 255 / 16,) * 3)
    images = np.repeat((images - images.mean()) / images.std(), 3, axis=-1).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    is_validation = np.arange(len(labels)) % 5 == 0
    return (
        Source(images[~is_validation], labels[~is_validation], 10, scale=scale),
        Source(images[is_validation], labels[is_validation], 10, scale=scale),
    )
