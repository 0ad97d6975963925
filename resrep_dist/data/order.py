"""The order of the samples: a pure function of (seed, position), the same for any number of ranks.

Position p is the p-th sample that training ever sees. Each epoch permutes the N samples anew, and a global
batch may end one epoch and begin the next: every sample comes exactly once per epoch, all batches are
equal in size, and a run resumes at any step at once.
"""

from resrep_dist.data.source import Source

import tensorflow as tf


def sample_indices(positions: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Sample at each position: int64 [B] -> int64 [B], each in [0, num_samples)."""
    epochs = positions // num_samples
    # Neighbouring seeds give permutations that resemble each other, so the epoch is hashed first.
    mixed = _mix(_mix(tf.fill(tf.shape(epochs), tf.cast(seed, tf.int64))) + epochs)
    seeds = tf.stack(
        [
            tf.bitwise.bitwise_and(mixed, 0x7FFFFFFF),
            tf.bitwise.bitwise_and(_right_shift(mixed, 31), 0x7FFFFFFF),
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
    source: Source,
    *,
    global_batch_size: int,
    augmentation: str,
    seed: int,
    rank: int,
    num_ranks: int,
    first_step: int,
) -> tf.data.Dataset:
    """This rank's part of every global batch from `first_step` on, without end: (images, labels)."""
    start, end = rank_part(global_batch_size, rank, num_ranks)
    images, labels = tf.constant(source.images), tf.constant(source.labels)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = step * global_batch_size + tf.range(start, end, dtype=tf.int64)
        indices = sample_indices(positions, len(source), seed)
        batch_images = tf.gather(images, indices)
        if augmentation == "shift":
            batch_images = _shift(batch_images, positions, seed)
        return batch_images, tf.gather(labels, indices)

    steps = tf.data.Dataset.range(first_step, tf.int64.max)
    return steps.map(batch, num_parallel_calls=2, deterministic=True).prefetch(4)


def evaluation_batches(source: Source, batch_size: int, rank: int, num_ranks: int) -> tf.data.Dataset:
    """This rank's part of the whole set, every sample once over all ranks: (images, labels)."""
    start, end = rank_part(len(source), rank, num_ranks)
    return tf.data.Dataset.from_tensor_slices((source.images[start:end], source.labels[start:end])).batch(batch_size)


def _mix(values: tf.Tensor) -> tf.Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64."""
    values += 0x9E3779B97F4A7C15 - (1 << 64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = tf.bitwise.bitwise_xor(values, _right_shift(values, shift)) * (factor - (1 << 64))
    return tf.bitwise.bitwise_xor(values, _right_shift(values, 31))


def _right_shift(values: tf.Tensor, num_bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(values, tf.constant(num_bits, values.dtype))


def _shift(images: tf.Tensor, positions: tf.Tensor, seed: int) -> tf.Tensor:
    height, width, channels = images.shape[1:]
    border = height // 8

    def crop(item: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, position = item
        padded = tf.pad(image, [[border, border], [border, border], [0, 0]])
        # The seed is the sample's place, so the crop does not depend on the number of ranks.
        return tf.image.stateless_random_crop(padded, [height, width, channels], [tf.cast(seed, tf.int64), position])

    return tf.map_fn(crop, (images, positions), fn_output_signature=images.dtype)
