"""Several tensors as one vector, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def pack(tensors: Sequence[Any], dtype: Any = None) -> tf.Tensor:
    """Put the values of tensors into one vector.

    Args:
        tensors: Tensors or variables of one type, of any shapes.
        dtype: Type of the result if there are no tensors.

    Returns:
        [number of all values].
    """
    if not tensors:
        return tf.zeros([0], dtype or tf.float32)
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)


def unpack(vector: tf.Tensor, shapes: Sequence[Any]) -> list[tf.Tensor]:
    """Divide what `pack` has put together.

    Args:
        vector: [number of all values].
        shapes: The shapes of the tensors, all known.
    """
    if not shapes:
        return []
    shapes = [tuple(map(int, shape)) for shape in shapes]
    parts = tf.split(vector, [int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
