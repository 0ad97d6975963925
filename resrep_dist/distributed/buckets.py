"""Sums gradients over the ranks in a few collectives, which begin while other gradients are still computed."""

import math
from collections.abc import Sequence

from resrep_dist.distributed.cluster import Cluster

import tensorflow as tf

_BUCKET_BYTES = 25e6
_MIN_BUCKETS, _MAX_BUCKETS = 4, 6
# Nothing is left to be computed while the last one travels.
_LAST_FRACTION = 1 / 32


def plan_buckets(num_bytes: Sequence[int]) -> list[list[int]]:
    """Divide tensors into 4 to 6 buckets of some 25 MB each, or smaller or larger ones, and a small last one.

    The division depends on the sizes only, so it is the same on all ranks and in all runs. The sums are too: their bits
    depend on the order of the ranks, from three on, and that order on a number's place in its collective.

    Args:
        num_bytes: Size of each tensor, in the order of the forward pass.

    Returns:
        For each bucket the indices of its tensors, in the order of the backward pass. Few or very different tensors
        give fewer buckets.
    """
    total = sum(num_bytes)
    num_large = min(_MAX_BUCKETS, max(_MIN_BUCKETS, 1 + math.ceil(total / _BUCKET_BYTES))) - 1
    bucket_bytes = total * (1 - _LAST_FRACTION) / num_large
    buckets: dict[int, list[int]] = {}
    end = 0
    for index in reversed(range(len(num_bytes))):
        # Where the middle of the tensor lies.
        number = int((end + num_bytes[index] / 2) / bucket_bytes) if total else 0
        end += num_bytes[index]
        buckets.setdefault(number, []).append(index)
    return list(buckets.values())


def sum_in_buckets(cluster: Cluster, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
    """Sum tensors over the ranks in a few collectives. Each can begin when its own tensors are computed.

    Args:
        cluster: The ranks.
        tensors: Tensors of one type, in the order of the forward pass, with the same shapes on all ranks.
        name: A name for the purpose; the collectives are numbered.

    Returns:
        The sums, in the order of `tensors`.
    """
    sums: dict[int, tf.Tensor] = {}
    num_bytes = [tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors]
    for number, indices in enumerate(plan_buckets(num_bytes)):
        sums |= zip(indices, cluster.sum([tensors[index] for index in indices], f"{name}_{number}"), strict=True)
    return [sums[index] for index in range(len(tensors))]
