"""Whether all ranks hold the same values, from numbers that are summed over them."""

import logging
from typing import Any

from resrep_dist.checkpoints.digest import as_bits, digest

import tensorflow as tf

_log = logging.getLogger(__name__)


# Numbers that are summed up before they are weighted.
_CHUNK_SIZE = 1024


def fingerprint(values: list[Any], dtype: str) -> tf.Tensor:
    """Six whole numbers below 16 that follow from all bits of the values, and their squares.

    Averaged row norms show a row that differs only if it does by more than they are rounded. The sums of these are
    exact, in float32 for up to 70,000 ranks, and by n * sum(x^2) = sum(x)^2 they say whether all ranks have the same.
    """
    if not values:
        return tf.zeros([12], dtype)
    small = [value for value in values if value.shape.num_elements() % _CHUNK_SIZE]
    blocks = [
        tf.reshape(as_bits(value), [-1, _CHUNK_SIZE])
        for value in values
        if not value.shape.num_elements() % _CHUNK_SIZE
    ]
    # Most of the time goes into passes over memory, and the sums of blocks are so many fewer numbers.
    bits = [tf.reduce_sum(block, -1) for block in blocks]
    if small:
        bits.append(as_bits(tf.concat([tf.reshape(value, [-1]) for value in small], 0)))
    # The factor takes every bit to the top ones. It is odd; otherwise any would do.
    mixed = digest(tf.concat(bits, 0)) * tf.constant(0x5851F42D4C957F2D, tf.int64)
    marks = tf.bitwise.bitwise_and(tf.bitwise.right_shift(mixed, tf.range(40, 64, 4, tf.int64)), 15)
    return tf.cast(tf.concat([marks, marks * marks], 0), dtype)


def differ(marks: tf.Tensor, num_ranks: int) -> tf.Tensor:
    sums, squares = tf.split(tf.cast(marks, tf.int64), 2)
    return tf.reduce_any(num_ranks * squares != sums * sums)
