"""The order of the samples: a pure function of (seed, position), the same for any number of ranks.

Position p is the p-th sample that training ever sees. Each epoch permutes the N samples anew, and a global
batch may end one epoch and begin the next: every sample comes exactly once per epoch, all batches are
equal in size, and a run resumes at any step at once.
"""

from resrep_dist.data.hashing import mix, right_shift
from resrep_dist.data.source import ImageSource, NamedErrors
from resrep_dist.distributed.environment import available_cores

import numpy as np
import tensorflow as tf

_NUM_PREFETCHED = 2


def sample_indices(positions: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Sample at each position: int64 [B] -> int64 [B], each in [0, num_samples)."""
    epochs = positions // num_samples
    # Neighbouring seeds give permutations that resemble each other, so the epoch is hashed first.
    mixed = mix(mix(tf.fill(tf.shape(epochs), tf.cast(seed, tf.int64))) + epochs)
    seeds = tf.stack(
        [
            tf.bitwise.bitwise_and(mixed, 0x7FFFFFFF),
            tf.bitwise.bitwise_and(right_shift(mixed, 31), 0x7FFFFFFF),
            tf.zeros_like(mixed),
        ],
        axis=1,
    )
    # tf.random.experimental.index_shuffle pads seeds along the wrong axis when there is one per index.
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % num_samples, seed=tf.cast(seeds, tf.int32), max_index=num_samples - 1, rounds=4
    )


def rank_part(size: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """Start and end of a rank's part of `size` items; parts differ by at most one."""
    return size * rank // num_ranks, size * (rank + 1) // num_ranks


def training_batches(
    source: ImageSource,
    *,
    global_batch_size: int,
    augmentation: str,
    seed: int,
    rank: int,
    num_ranks: int,
    first_step: int,
) -> NamedErrors:
    """This rank's part of every global batch from `first_step` on, without end: (images, labels).

    Raises:
        SampleError: while they are read, on the rank whose sample cannot be read.
    """
    start, end = rank_part(global_batch_size, rank, num_ranks)

    def places(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = step * global_batch_size + tf.range(start, end, dtype=tf.int64)
        return sample_indices(positions, len(source), seed), positions

    def indices_of(number: int) -> np.ndarray:
        return places(tf.constant(first_step + number, tf.int64))[0].numpy()

    steps = tf.data.Dataset.range(first_step, tf.int64.max).map(places)
    return NamedErrors(_prefetch(source.load(steps, end - start, augmentation, seed)), source, indices_of)


def evaluation_batches(source: ImageSource, batch_size: int, rank: int, num_ranks: int) -> NamedErrors:
    """This rank's part of the whole set, every sample once over all ranks: (images, labels)."""
    start, end = rank_part(len(source), rank, num_ranks)

    def indices_of(number: int) -> range:
        return range(start + number * batch_size, min(end, start + (number + 1) * batch_size))

    indices = tf.data.Dataset.range(start, end).batch(batch_size)
    batches = source.load(tf.data.Dataset.zip((indices, indices)), batch_size, "none", 0)
    return NamedErrors(_prefetch(batches), source, indices_of)


def _prefetch(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.cpu_budget = available_cores()
    return batches.prefetch(_NUM_PREFETCHED).with_options(options)
