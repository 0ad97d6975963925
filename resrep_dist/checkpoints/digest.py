"""Digests of a state, which the ranks compare."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class Digest:
    """Computes one 64-bit digest per variable, on the device that has the variable.

    A single flipped bit always changes the digest.

    Attributes:
        names: Names of the variables.

    Args:
        variables: Variables of numeric types, by name.
    """

    def __init__(self, variables: Mapping[str, tf.Variable]) -> None:
        self.names = list(variables)
        self._compute = tf.function(lambda: tf.stack([digest(v.read_value()) for v in variables.values()]))

    def __call__(self) -> np.ndarray:
        """Compute the digests of the current values.

        Returns:
            int64 [number of variables], in the order of `names`.
        """
        return self._compute().numpy()


def as_bits(values: tf.Tensor) -> tf.Tensor:
    """Return the bits of each number, as a whole number.

    Args:
        values: Numbers of any shape and numeric type. Whole numbers are returned as they are.

    Returns:
        int64 [N].
    """
    if values.dtype.is_floating:
        values = tf.bitcast(values, {2: tf.int16, 4: tf.int32, 8: tf.int64}[values.dtype.size])
    return tf.reshape(tf.cast(values, tf.int64), [-1])


def digest(values: tf.Tensor) -> tf.Tensor:
    """Return a digest of numbers, which any single flipped bit changes.

    Args:
        values: Numbers of any shape and numeric type.

    Returns:
        A scalar int64.
    """
    bits = as_bits(values)
    # A range of int64 on a GPU would be copied to the host for its bounds, which then waits for the GPU.
    positions = tf.cast(tf.range(tf.size(bits)), tf.int64)
    # The factors are odd. So a flip of bit b changes the sum by 2^b times an odd number, which is not 0 modulo 2^64.
    return tf.reduce_sum(bits * (2 * positions + 1))
