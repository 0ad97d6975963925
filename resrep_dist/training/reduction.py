"""Sums the results of a step over the ranks."""

from collections.abc import Sequence
from typing import NamedTuple

from resrep_dist.distributed.cluster import Cluster

import tensorflow as tf

# Averaged gradients are sent as float16 times this factor: full precision from 6e-8 to 64.
_FLOAT16_FACTOR = 1024.0


class RankSums(NamedTuple):
    """Sums over the samples of this rank."""

    gradients: list[tf.Tensor]
    """Gradient of each trainable variable."""
    statistics: list[tf.Tensor]
    """Batch-norm statistics times the number of samples."""
    counts: tf.Tensor
    """[loss, number of correct samples, number of samples]"""


class ClusterSums(NamedTuple):
    """Sums over all ranks."""

    gradients: list[tf.Tensor]
    """Gradient of each trainable variable."""
    rest: list[tf.Tensor]
    """All other values."""
    fits: tf.Tensor
    """True if no gradient was too large for the type in which it was sent, a scalar bool."""


def sum_over_ranks(
    cluster: Cluster,
    gradients: Sequence[tf.Tensor],
    rest: Sequence[tf.Tensor],
    *,
    compression: str,
    global_batch_size: int,
) -> ClusterSums:
    """Sum gradients and other values over the ranks in one collective, or in two if gradients are sent as float16.

    Horovod reduces a group of tensors at once, but only if all have one type.

    Args:
        cluster: The ranks.
        gradients: Gradients of this rank, summed over its samples.
        rest: Other values of this rank, which always keep their type.
        compression: `none` or `fp16`.
        global_batch_size: Number of samples per step over all ranks, which scales the gradients for float16.
    """
    if compression == "none" or cluster.size == 1:
        summed = cluster.sum([*gradients, *rest], "step")
        return ClusterSums(summed[: len(gradients)], summed[len(gradients) :], tf.constant(True))
    factor = _FLOAT16_FACTOR / global_batch_size
    packed = [tf.cast(gradient * factor, tf.float16) for gradient in gradients]
    received = cluster.sum(packed, "step_gradients")
    unpacked = [tf.cast(p, g.dtype) / factor for p, g in zip(received, gradients, strict=True)]
    # Finite gradients may be too large for float16. All ranks receive the same sums, so they get the same answer.
    fits = tf.reduce_all([is_finite(value) for value in unpacked])
    return ClusterSums(unpacked, cluster.sum(rest, "step"), fits)


def is_finite(tensor: tf.Tensor) -> tf.Tensor:
    """Return True if all values of a tensor are finite, a scalar bool.

    Only their sum is tested, which is faster than a test of each value. A sum that overflows counts as not finite; a
    step with such gradients is lost anyway.

    Args:
        tensor: A tensor of a floating-point type.
    """
    return tf.math.is_finite(tf.reduce_sum(tensor))
