"""Full float32 for comparisons."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def strict_float32() -> Iterator[None]:
    """Let convolutions and matrix products use all bits of float32 inside the block.

    On GPUs from Ampere on, TensorFlow rounds their inputs to 10 bits by default (TF32). Two models that are equal in
    exact arithmetic then differ by some 1e-3 of the largest output. That does not harm training, but hides what a
    comparison is to find.
    """
    was_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(was_enabled)
