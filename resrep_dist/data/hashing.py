"""Random bits that follow from whole numbers alone, for many at once."""

import tensorflow as tf


def mix(values: tf.Tensor) -> tf.Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64."""
    values += 0x9E3779B97F4A7C15 - (1 << 64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = tf.bitwise.bitwise_xor(values, right_shift(values, shift)) * (factor - (1 << 64))
    return tf.bitwise.bitwise_xor(values, right_shift(values, 31))


def right_shift(values: tf.Tensor, num_bits: int) -> tf.Tensor:
    """Of int64 as of uint64: zeros come in from the left."""
    return tf.bitwise.right_shift(values, tf.constant(num_bits, values.dtype))
