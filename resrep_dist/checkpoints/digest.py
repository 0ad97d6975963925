"""Digests of a state: what the ranks compare."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class Digest:
    """One 64-bit digest per variable, computed where the variables are; any single flipped bit changes it."""

    def __init__(self, variables: Mapping[str, tf.Variable]) -> None:
        self.names = list(variables)
        self._compute = tf.function(lambda: tf.stack([digest(v.read_value()) for v in variables.values()]))

    def __call__(self) -> np.ndarray:
        """Int64 [number of variables], in the order of `names`."""
        return self._compute().numpy()


def as_bits(values: tf.Tensor) -> tf.Tensor:
    """The bits of any numbers as int64 [N]."""
    if values.dtype.is_floating:
        values = tf.bitcast(values, {2: tf.int16, 4: tf.int32, 8: tf.int64}[values.dtype.size])
    return tf.reshape(tf.cast(values, tf.int64), [-1])


def digest(values: tf.Tensor) -> tf.Tensor:
    """One int64 that any single flipped bit of the values changes."""
    bits = as_bits(values)
    # Odd factors: the difference that one bit makes, 2^b times an odd number, is never 0 modulo 2^64.
    return tf.reduce_sum(bits * (2 * tf.range(tf.size(bits, tf.int64), dtype=tf.int64) + 1))
