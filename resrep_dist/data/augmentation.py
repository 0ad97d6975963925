"""Random crops and mirror images of batches, and normalization by mean and standard deviation.

All random numbers are stateless functions of the seed and the sample's position (see `order.py`), so they do not depend
on the number of ranks or on where a run was resumed.
"""

from collections.abc import Sequence

from resrep_dist.data.hashing import mix

import numpy as np
import tensorflow as tf

PADDING = ("shift", "pad_crop_flip")
"""Augmentations that pad images with zeros."""


def augment(images: tf.Tensor, augmentation: str, positions: tf.Tensor, seed: int, padding: int = 0) -> tf.Tensor:
    """Pad each image by an eighth of its height, crop it at random, and for `pad_crop_flip` mirror half of the images.

    Args:
        images: [B, height, width, channels].
        augmentation: One of `PADDING`; for all others the images are returned as they are.
        positions: Position of each sample in training, int64 [B].
        seed: Seed of the run.
        padding: Value of the pixels that are padded.

    Returns:
        Images of the same shape and type.
    """
    if augmentation not in PADDING:
        return images
    height, width = images.shape[1:3]
    border = height // 8
    padded = tf.pad(images, [[0, 0], [border, border], [border, border], [0, 0]], constant_values=padding)
    tops, lefts, coins = tf.unstack(_random_numbers(positions, seed), axis=1)
    tops, lefts = tops % (2 * border + 1), lefts % (2 * border + 1)
    rows = tops[:, tf.newaxis] + tf.range(height)
    columns = lefts[:, tf.newaxis] + tf.range(width)
    if augmentation == "pad_crop_flip":
        columns = tf.where(coins[:, tf.newaxis] % 2 == 1, tf.reverse(columns, [1]), columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def is_mirrored(positions: tf.Tensor, seed: int) -> tf.Tensor:
    """Decide for each sample whether its image is mirrored, with probability 0.5.

    Args:
        positions: Position of each sample in training, int64 [B].
        seed: Seed of the run.

    Returns:
        bool [B].
    """
    # A negative seed, since the order of the samples comes from hashes with the seed itself.
    seeds = tf.fill(tf.shape(positions), tf.constant(-1 - seed, tf.int64))
    return tf.bitwise.bitwise_and(mix(mix(seeds) + positions), 1) == 1


def normalize(pixels: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Return (pixels - mean) / std.

    Args:
        pixels: [..., height, width, channels], of any type.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        float32 of the same shape.
    """
    # Factors for every pixel, since Eigen multiplies by three channels at a tenth of the speed.
    # Of signals [B, length, channels] the first one is not known.
    shape = [size or 1 for size in pixels.shape[-3:]]
    factors = np.broadcast_to(1.0 / np.asarray(std), shape).astype(np.float32)
    offsets = np.broadcast_to(-np.asarray(mean) / np.asarray(std), shape).astype(np.float32)
    return tf.cast(pixels, tf.float32) * factors + offsets


def _random_numbers(positions: tf.Tensor, seed: int) -> tf.Tensor:
    """Draw three random numbers for each position: int64 [B] -> int32 [B, 3]."""

    def draw(position: tf.Tensor) -> tf.Tensor:
        # The numbers of tf.image.stateless_random_crop, which takes one image at a time.
        return tf.random.stateless_uniform(
            [3], [tf.constant(seed, tf.int64), position], maxval=tf.int32.max, dtype=tf.int32
        )

    return tf.map_fn(draw, positions, fn_output_signature=tf.TensorSpec([3], tf.int32))
