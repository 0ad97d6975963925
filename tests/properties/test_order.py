"""For any seed, size, batch and number of ranks: every sample once per epoch, in the same global batches."""

import itertools

from resrep_dist.data.order import sample_indices, training_batches
from resrep_dist.data.source import Source

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=60)
@given(seeds, st.integers(1, 300), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(seed, num_samples, epoch):
    positions = tf.range(epoch * num_samples, (epoch + 1) * num_samples, dtype=tf.int64)
    assert sorted(sample_indices(positions, num_samples, seed).numpy()) == list(range(num_samples))


@settings(max_examples=8)
@given(seeds, st.integers(1, 40), st.integers(6, 20), st.integers(2, 6), st.integers(0, 50))
def test_global_batches_do_not_depend_on_the_number_of_ranks(seed, num_samples, batch_size, num_ranks, first_step):
    images = np.arange(num_samples, dtype=np.float32)[:, None, None, None]
    source = Source(images, np.arange(num_samples), num_samples)
    num_steps = -(-2 * num_samples // batch_size)

    def batches(rank, of):
        stream = training_batches(
            source, global_batch_size=batch_size, augmentation="none", seed=seed, rank=rank, num_ranks=of,
            first_step=first_step,
        )  # fmt: skip
        return [labels.numpy() for _, labels in itertools.islice(stream, num_steps)]

    whole = batches(0, 1)
    parts = [batches(rank, num_ranks) for rank in range(num_ranks)]
    for step, batch in enumerate(whole):
        assert len(batch) == batch_size
        np.testing.assert_array_equal(batch, np.concatenate([part[step] for part in parts]))
    # Where an epoch lies in these steps as a whole, each of its samples is in them once.
    start = first_step * batch_size
    skipped = -start % num_samples
    seen = np.concatenate(whole)[skipped : skipped + num_samples]
    if len(seen) == num_samples:
        assert sorted(seen) == list(range(num_samples))
