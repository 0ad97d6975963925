"""Hashes of integers, for many at once, as random bits."""

import tensorflow as tf


def mix(values: tf.Tensor) -> tf.Tensor:
    """Hash int64 values of any shape by the next-value function of SplitMix64 (Steele et al., 2014)."""
    values += 0x9E3779B97F4A7C15 - (1 << 64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = tf.bitwise.bitwise_xor(values, right_shift(values, shift)) * (factor - (1 << 64))
    return tf.bitwise.bitwise_xor(values, right_shift(values, 31))


def right_shift(values: tf.Tensor, num_bits: int) -> tf.Tensor:
    """Shift int64 values to the right as if they were uint64, so that zeros come in from the left."""
    return tf.bitwise.right_shift(values, tf.constant(num_bits, values.dtype))
