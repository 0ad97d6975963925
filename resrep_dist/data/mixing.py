"""mixup and CutMix: each training image is mixed with its neighbor in the global batch, and so are their labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018 (arXiv 1710.09412); Yun et al., "CutMix: Regularization
Strategy to Train Strong Classifiers with Localizable Features", 2019 (arXiv 1905.04899).

The images at places 2k and 2k + 1 of a global batch are each other's partners. The order of the samples is random, so
they are a random pair, and a rank has to load at most two images that are not its own. Random numbers are stateless
functions of seed and position, as in `augmentation.py`. Each sample draws its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from resrep_dist.config import DataConfig

import numpy as np
import tensorflow as tf

# Added to the seed, which has less than 32 bits, so that no other random numbers are the same.
_STREAM = 1 << 33


class MixedLabels(NamedTuple):
    """The labels of mixed images."""

    first: Any
    """Labels of the images themselves, int64 [B]."""
    second: Any
    """Labels of their partners, int64 [B]."""
    weight: Any
    """Share of the first label, float32 [B]. The second has the rest."""


Labels: TypeAlias = tf.Tensor | MixedLabels
"""Labels of any task, or those of mixed images."""


def mean_of_labels(function: Callable[[tf.Tensor], tf.Tensor], labels: Labels) -> tf.Tensor:
    """Return a function of labels, or for mixed labels its mean over both, weighted.

    Args:
        function: A function of labels, int64 [B], that returns a number for each, [B].
        labels: Labels of any task, or mixed ones.

    Returns:
        [B].
    """
    if not isinstance(labels, MixedLabels):
        return function(labels)
    first, second = function(labels.first), function(labels.second)
    return second + tf.cast(labels.weight, first.dtype) * (first - second)


def is_mixing(config: DataConfig) -> bool:
    """Return True if the images of a configuration are mixed."""
    return config.mixup_alpha > 0 or config.cutmix_alpha > 0


def with_partners(start: int, end: int, global_batch_size: int) -> tuple[int, int]:
    """Return the part of a global batch that has all partners of the places from `start` to `end`."""
    return start // 2 * 2, min((end + 1) // 2 * 2, global_batch_size)


def mix(
    images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor, places: range, config: DataConfig, seed: int
) -> tuple[tf.Tensor, MixedLabels]:
    """Mix images with their partners, by mixup or CutMix; if both are on, each sample takes one of them at random.

    The share of an image is drawn from Beta(alpha, alpha). CutMix corrects it to the share of the pixels that are left.

    Args:
        images: A part of a global batch that begins at an even place and has all partners, float32 [B, height, width,
            channels].
        labels: Their labels, int64 [B].
        positions: Position of each sample in training, int64 [B].
        places: The images that are mixed, counted in `images`; the others are only partners.
        config: `mixup_alpha` and `cutmix_alpha`, at least one of which is not 0.
        seed: Seed of the run.

    Returns:
        The mixed images of `places`, of the same type, and their labels.
    """
    own, partners = np.array(places), np.array(places) ^ 1
    # The last sample of a batch of odd size has no partner, and is mixed with itself.
    partners = np.where(partners < images.shape[0], partners, own)
    first, second = tf.gather(images, own), tf.gather(images, partners)
    shares, centers, is_cut = _draw(tf.gather(positions, own), config, seed)
    of_pixels = shares[:, tf.newaxis, tf.newaxis, tf.newaxis]
    mixed = second + of_pixels * (first - second)
    if config.cutmix_alpha > 0:
        is_inside = _windows(shares, centers, images.shape[1], images.shape[2])
        left = 1.0 - tf.reduce_mean(tf.cast(is_inside, tf.float32), [1, 2])
        cut = tf.where(is_inside[..., tf.newaxis], second, first)
        mixed = tf.where(is_cut[:, tf.newaxis, tf.newaxis, tf.newaxis], cut, mixed)
        shares = tf.where(is_cut, left, shares)
    return mixed, MixedLabels(tf.gather(labels, own), tf.gather(labels, partners), shares)


def _draw(positions: tf.Tensor, config: DataConfig, seed: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draw for each position the share of the image, the center of a window in [0, 1), and whether it is cut."""
    stream = tf.constant(seed + _STREAM, tf.int64)
    probability = 0.0 if not config.cutmix_alpha else 1.0 if not config.mixup_alpha else 0.5

    def draw(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        numbers = tf.random.stateless_uniform([5], [stream, position])
        is_cut = numbers[0] < probability
        alpha = tf.where(is_cut, config.cutmix_alpha, config.mixup_alpha)
        # Two numbers of the gamma distribution make one of the beta distribution. For a small alpha both can be too
        # small for float32, so their logarithms are used: Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha).
        gammas = tf.random.stateless_gamma([2], [stream + 1, position], alpha + 1.0)
        logarithms = tf.math.log(gammas) + tf.math.log(1.0 - numbers[3:]) / alpha
        return tf.sigmoid(logarithms[0] - logarithms[1]), numbers[1:3], is_cut

    signature = (tf.TensorSpec([], tf.float32), tf.TensorSpec([2], tf.float32), tf.TensorSpec([], tf.bool))
    return tf.map_fn(draw, positions, fn_output_signature=signature)


def _windows(shares: tf.Tensor, centers: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Return which pixels come from the partner, bool [B, height, width], as in the authors' code of CutMix."""

    def is_between(size: int, center: tf.Tensor) -> tf.Tensor:
        half = tf.cast(size * tf.sqrt(1.0 - shares), tf.int32) // 2
        middle = tf.cast(size * center, tf.int32)
        pixels = tf.range(size)
        return (pixels >= (middle - half)[:, tf.newaxis]) & (pixels < (middle + half)[:, tf.newaxis])

    rows, columns = is_between(height, centers[:, 0]), is_between(width, centers[:, 1])
    return rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]
