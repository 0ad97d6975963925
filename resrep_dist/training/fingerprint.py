"""Whether all ranks hold the same values, found by the sums that a step makes anyway."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.checkpoints.digest import as_bits, digest

import tensorflow as tf

_NUM_NIBBLES = 6
NUM_FINGERPRINT_VALUES = 2 * _NUM_NIBBLES
# Values of this many neighbouring bits are added up before they are weighted.
_CHUNK_SIZE = 1024


def fingerprint(values: Sequence[Any], dtype: str) -> tf.Tensor:
    """A replica's fingerprint: whole numbers x below 16 that follow from all bits of the values, and their squares.

    Every rank adds its fingerprint to the step's all-reduce. By the Cauchy-Schwarz inequality the sums over n ranks
    obey n * sum(x^2) >= sum(x)^2, with equality only if all ranks have the same x; `differ` looks for that. So a
    flipped bit is found without a collective of its own. Numbers below 16 keep the sums exact in float32 for up to
    70,000 ranks (15 * 15 * n < 2^24). Two different values have the same fingerprint by chance once in 2^24.

    Averaged row norms alone would show a rank that differs only if it does by more than they are rounded.

    Args:
        values: tensors or variables of any numeric type.
        dtype: of the result.

    Returns:
        [NUM_FINGERPRINT_VALUES], the numbers and then their squares.
    """
    if not values:
        return tf.zeros([NUM_FINGERPRINT_VALUES], dtype)
    small = [value for value in values if value.shape.num_elements() % _CHUNK_SIZE]
    large = [value for value in values if not value.shape.num_elements() % _CHUNK_SIZE]
    # Most of the time goes into passes over memory; after this sum there are 1024 times fewer numbers.
    bits = [tf.reduce_sum(tf.reshape(as_bits(value), [-1, _CHUNK_SIZE]), -1) for value in large]
    if small:
        bits.append(as_bits(tf.concat([tf.reshape(value, [-1]) for value in small], 0)))
    # The factor carries every bit to the top ones. It is odd; otherwise any would do.
    mixed = digest(tf.concat(bits, 0)) * tf.constant(0x5851F42D4C957F2D, tf.int64)
    top_bits = tf.bitwise.right_shift(mixed, tf.range(64 - 4 * _NUM_NIBBLES, 64, 4, tf.int64))
    numbers = tf.bitwise.bitwise_and(top_bits, 15)
    return tf.cast(tf.concat([numbers, numbers * numbers], 0), dtype)


def differ(summed: tf.Tensor, num_ranks: int) -> tf.Tensor:
    """True if the ranks whose fingerprints were summed do not all have the same one."""
    sums, squares = tf.split(tf.cast(summed, tf.int64), 2)
    return tf.reduce_any(num_ranks * squares != sums * sums)
