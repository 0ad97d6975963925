"""Sums the results of a step over the ranks."""

from collections.abc import Sequence
from typing import NamedTuple

from resrep_dist.distributed.buckets import sum_in_buckets
from resrep_dist.distributed.cluster import Cluster

import tensorflow as tf

# Averaged gradients are sent as float16 times this factor: full precision from 6e-8 to 64.
_FLOAT16_FACTOR = 1024.0


class RankSums(NamedTuple):
    """Sums over the samples of this rank."""

    gradients: list[tf.Tensor]
    """This rank's part of the averaged gradient of each trainable variable."""
    statistics: tf.Tensor
    """This rank's part of the averaged batch-norm statistics, as one vector."""
    counts: tf.Tensor
    """[loss, number of correct samples, number of samples]"""


class ClusterSums(NamedTuple):
    """Sums over all ranks."""

    gradients: list[tf.Tensor]
    """Averaged gradient of each trainable variable."""
    rest: list[tf.Tensor]
    """All other values."""
    fits: tf.Tensor
    """True if no gradient was too large for the type in which it was sent, a scalar bool."""


def sum_over_ranks(
    cluster: Cluster, gradients: Sequence[tf.Tensor], rest: Sequence[tf.Tensor], compression: str
) -> ClusterSums:
    """Sum gradients over the ranks in a few collectives, and other values in one more.

    Args:
        cluster: The ranks.
        gradients: This rank's parts of the averaged gradients, in the order of the forward pass.
        rest: Other values of this rank, which always keep their type.
        compression: `none` or `fp16`.
    """
    if compression == "none" or cluster.size == 1:
        return ClusterSums(
            sum_in_buckets(cluster, gradients, "step"), cluster.sum(rest, "step_rest"), tf.constant(True)
        )
    packed = [tf.cast(gradient * _FLOAT16_FACTOR, tf.float16) for gradient in gradients]
    received = sum_in_buckets(cluster, packed, "step_float16")
    unpacked = [tf.cast(p, g.dtype) / _FLOAT16_FACTOR for p, g in zip(received, gradients, strict=True)]
    # Finite gradients may be too large for float16. All ranks receive the same sums, so they get the same answer.
    fits = tf.reduce_all(are_finite(unpacked))
    return ClusterSums(unpacked, cluster.sum(rest, "step_rest"), fits)


def are_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return for each tensor whether all of its values are finite, bool [number of tensors].

    Only their sums are tested, which is faster than a test of each value. A sum that overflows counts as not finite; a
    step with such gradients is lost anyway.

    Args:
        tensors: Tensors of one floating-point type.
    """
    return tf.math.is_finite(tf.stack([tf.reduce_sum(tensor) for tensor in tensors]))
