"""The order of the samples: a pure function of seed and position, the same for any number of ranks.

Position p is that of the p-th sample since the start of training, counted from 0. Each epoch has its own permutation of
the N samples. A global batch may end one epoch and begin the next, so every sample is used exactly once per epoch, all
batches have the same size, and a run can be resumed at any step without reading the samples before it.
"""

import functools
from typing import Any

from resrep_dist.config import DataConfig
from resrep_dist.data.batches import NUM_PARALLEL_BATCHES, Batches
from resrep_dist.data.hashing import mix as mix_bits
from resrep_dist.data.hashing import right_shift
from resrep_dist.data.mixing import is_mixing, mix, with_partners
from resrep_dist.data.rand_augment import rand_augment
from resrep_dist.data.source import ImageSource

import numpy as np
import tensorflow as tf

_NUM_PREFETCHED = 2


def sample_indices(positions: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Return the index of the sample at each position.

    Args:
        positions: int64 [B].
        num_samples: Number of samples of the training set.
        seed: Seed of the phase, see `training.phase.phase_seed`.

    Returns:
        int64 [B], each in [0, num_samples).
    """
    epochs = positions // num_samples
    # Consecutive seeds give similar permutations, so seed and epoch are hashed first.
    mixed = mix_bits(mix_bits(tf.fill(tf.shape(epochs), tf.cast(seed, tf.int64))) + epochs)
    seeds = tf.stack(
        [
            tf.bitwise.bitwise_and(mixed, 0x7FFFFFFF),
            tf.bitwise.bitwise_and(right_shift(mixed, 31), 0x7FFFFFFF),
            tf.zeros_like(mixed),
        ],
        axis=1,
    )
    # tf.random.experimental.index_shuffle pads seeds along the wrong axis if there is one per index.
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % num_samples, seed=tf.cast(seeds, tf.int32), max_index=num_samples - 1, rounds=4
    )


def first_epoch_images(source: ImageSource, num_images: int, seed: int) -> np.ndarray:
    """Load the images that a run sees first, so of all classes, but as for evaluation: without augmentation.

    Args:
        source: The training set.
        num_images: Maximum number of images, at least 1.
        seed: Seed of the phase, see `training.phase.phase_seed`.

    Returns:
        float32 [min(num_images, len(source)), height, width, channels].

    Raises:
        SampleError: If one of them cannot be read.
    """
    positions = tf.range(min(num_images, len(source)), dtype=tf.int64)
    return source.images_at(sample_indices(positions, len(source), seed).numpy())


def rank_part(size: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """Return start and end of a rank's part of `size` items; the parts differ by at most one item."""
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
    num_threads: int | None = None,
    config: DataConfig | None = None,
) -> Batches:
    """Return this rank's part of every global batch, without end.

    Args:
        source: The training set.
        global_batch_size: Number of samples of all ranks per step.
        augmentation: As in `DataConfig.augmentation`.
        seed: Seed of the phase, see `training.phase.phase_seed`.
        rank: This rank.
        num_ranks: Number of ranks.
        first_step: Step of the first batch, counted from 0.
        num_threads: Number of threads that read and augment. None lets TensorFlow choose.
        config: RandAugment, mixup and CutMix; None for none of them.

    Returns:
        Pairs (images, labels), float32 [B, height, width, channels] and int64 [B], or MixedLabels of mixed images. The
        iterator raises a SampleError on the rank whose sample cannot be read.
    """
    start, end = rank_part(global_batch_size, rank, num_ranks)
    is_mixed = config is not None and is_mixing(config)
    first, last = with_partners(start, end, global_batch_size) if is_mixed else (start, end)

    def places(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = step * global_batch_size + tf.range(first, last, dtype=tf.int64)
        return sample_indices(positions, len(source), seed), positions

    def read_indices_of(number: int) -> np.ndarray:
        return places(tf.constant(first_step + number, tf.int64))[0].numpy()

    def indices_of(number: int) -> np.ndarray:
        return read_indices_of(number)[start - first : end - first]

    def batches_from(number: int) -> tf.data.Dataset:
        steps = tf.data.Dataset.range(first_step + number, tf.int64.max).map(places)
        batches = source.load(steps, last - first, augmentation, seed)
        if config is not None and (is_mixed or config.rand_augment is not None):
            change = functools.partial(_changed, source, config, range(start - first, end - first), seed)
            batches = tf.data.Dataset.zip((batches, steps))
            batches = batches.map(change, num_parallel_calls=NUM_PARALLEL_BATCHES, deterministic=True)
        return _prefetch(batches, num_threads)

    return Batches(batches_from, source, indices_of, read_indices_of)


def evaluation_batches(
    source: ImageSource, batch_size: int, rank: int, num_ranks: int, num_threads: int | None = None
) -> Batches:
    """Return this rank's part of a whole set in batches; over all ranks every sample is there once.

    Args:
        source: The set.
        batch_size: Number of samples of this rank per batch; the last batch may be smaller.
        rank: This rank.
        num_ranks: Number of ranks.
        num_threads: Number of threads that read. None lets TensorFlow choose.

    Returns:
        Pairs (images, labels), as `training_batches`.
    """
    start, end = rank_part(len(source), rank, num_ranks)

    def indices_of(number: int) -> range:
        return range(start + number * batch_size, min(end, start + (number + 1) * batch_size))

    def batches_from(number: int) -> tf.data.Dataset:
        indices = tf.data.Dataset.range(start + number * batch_size, end).batch(batch_size)
        batches = source.load(tf.data.Dataset.zip((indices, indices)), batch_size, "none", 0)
        return _prefetch(batches, num_threads)

    return Batches(batches_from, source, indices_of)


def _changed(source: ImageSource, config: DataConfig, own: range, seed: int, batch: Any, place: Any) -> Any:
    """Apply RandAugment, mixup and CutMix; what is read beside a rank's `own` samples is only mixed with these."""
    (images, labels), (_, positions) = batch, place
    # A program's arrays may have any type, and what follows multiplies by float32.
    images = tf.cast(tf.ensure_shape(images, [*positions.shape, *images.shape[1:]]), tf.float32)
    if config.rand_augment is not None:
        scale = source.pixel_scale()
        assert scale is not None
        images = scale(rand_augment(scale.pixels_of(images), config.rand_augment, positions, seed))
    return mix(images, labels, positions, own, config, seed) if is_mixing(config) else (images, labels)


def _prefetch(batches: tf.data.Dataset, num_threads: int | None) -> tf.data.Dataset:
    options = tf.data.Options()
    # Where it tunes itself, an iterator that is dropped waits for the thread that does it, for up to a minute and with
    # Python's lock held, so that no other thread of the rank shows that it is alive. Seen with TensorFlow 2.21.
    options.autotune.enabled = False
    if num_threads is not None:
        options.threading.private_threadpool_size = num_threads
    batches = batches.prefetch(_NUM_PREFETCHED).with_options(options)
    gpus = tf.config.list_logical_devices("GPU")
    # Copied to the device while it computes the step before. It has to be the last transformation.
    return batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name)) if gpus else batches
