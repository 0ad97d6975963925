"""Detects in every step, without another collective, whether all ranks have the same values."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.checkpoints.digest import as_bits, digest

import numpy as np
import tensorflow as tf

_NUM_NIBBLES = 6
NUM_FINGERPRINT_VALUES = 2 * _NUM_NIBBLES
# This many neighboring values are added up before they are weighted.
_CHUNK_SIZE = 1024


def fingerprint(values: Sequence[Any], dtype: str) -> tf.Tensor:
    """Return the fingerprint of this rank's values: a few whole numbers x below 16 and their squares.

    Every rank adds its fingerprint to the all-reduce of the step. By the Cauchy-Schwarz inequality the sums over n
    ranks obey n * sum(x^2) >= sum(x)^2, with equality only if x is the same on all ranks. `differ` tests that, so a
    flipped bit is found without a collective of its own.

    Numbers below 16 keep the sums exact in float32 for up to 70,000 ranks (15 * 15 * n < 2^24). Two different values
    have the same fingerprint by chance with a probability of 1 in 2^24. Averaged row norms would not be enough: they
    show a difference only if it is larger than their rounding error.

    Args:
        values: Tensors or variables of any numeric type.
        dtype: Type of the result.

    Returns:
        [NUM_FINGERPRINT_VALUES]: the numbers, then their squares.
    """
    if not values:
        return tf.zeros([NUM_FINGERPRINT_VALUES], dtype)
    small = [value for value in values if value.shape.num_elements() % _CHUNK_SIZE]
    large = [value for value in values if not value.shape.num_elements() % _CHUNK_SIZE]
    # Most of the time is spent on reading memory. After this sum there are 1024 times fewer numbers to weight.
    bits = [tf.reduce_sum(tf.reshape(as_bits(value), [-1, _CHUNK_SIZE]), -1) for value in large]
    if small:
        bits.append(as_bits(tf.concat([tf.reshape(value, [-1]) for value in small], 0)))
    # The product carries a change of any bit to the top bits, which are used. Any large odd factor would do.
    mixed = digest(tf.concat(bits, 0)) * tf.constant(0x5851F42D4C957F2D, tf.int64)
    top_bits = tf.bitwise.right_shift(mixed, np.arange(64 - 4 * _NUM_NIBBLES, 64, 4))
    numbers = tf.bitwise.bitwise_and(top_bits, 15)
    return tf.cast(tf.concat([numbers, numbers * numbers], 0), dtype)


def differ(summed: tf.Tensor, num_ranks: int) -> tf.Tensor:
    """Return True if not all ranks have the same fingerprint.

    Args:
        summed: Fingerprints summed over the ranks, [NUM_FINGERPRINT_VALUES].
        num_ranks: Number of ranks.

    Returns:
        A scalar bool tensor.
    """
    # Divided before the cast: TensorFlow cannot split whole numbers on a GPU, and would copy them to the host and back.
    sums, squares = (tf.cast(half, tf.int64) for half in tf.split(summed, 2))
    return tf.reduce_any(num_ranks * squares != sums * sums)
