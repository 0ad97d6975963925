import itertools

from resrep_dist.data import load_sources
from resrep_dist.data.order import evaluation_batches, rank_part, sample_indices, training_batches
from tests.networks import random_source, small_config

import numpy as np
import pytest
import tensorflow as tf


def test_every_epoch_holds_every_sample_once_in_another_order():
    epochs = [sample_indices(tf.range(n * 97, (n + 1) * 97, dtype=tf.int64), 97, seed=3).numpy() for n in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(97))
    for a, b in itertools.combinations(epochs, 2):
        assert (a == b).mean() < 0.1


def batches(num_ranks, first_step=0, num_steps=5, augmentation="shift"):
    """Global batches, put together from the parts of the ranks."""
    source = random_source(50, image_size=8)
    parts = []
    for rank in range(num_ranks):
        dataset = training_batches(
            source, global_batch_size=14, augmentation=augmentation, seed=1, rank=rank, num_ranks=num_ranks,
            first_step=first_step,
        )  # fmt: skip
        parts.append(list(dataset.take(num_steps).as_numpy_iterator()))
    return [[np.concatenate(arrays) for arrays in zip(*step, strict=True)] for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(num_ranks):
    for one, several in zip(batches(1), batches(num_ranks), strict=True):
        for a, b in zip(one, several, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_resumes_at_any_step():
    for a, b in zip(batches(1)[3:], batches(1, first_step=3, num_steps=2), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_augmentation_moves_images_and_can_be_off():
    assert not np.array_equal(batches(1)[0][0], batches(1, augmentation="none")[0][0])
    source = random_source(50, image_size=8)
    images = batches(1, augmentation="none")[0][0]
    assert all(any(np.array_equal(image, original) for original in source.images) for image in images)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_evaluation_takes_every_sample_once(num_ranks):
    source = random_source(50)
    seen = [labels for r in range(num_ranks) for _, labels in evaluation_batches(source, 7, r, num_ranks)]
    np.testing.assert_array_equal(np.concatenate(seen), source.labels)
    sizes = [end - start for start, end in (rank_part(50, r, num_ranks) for r in range(num_ranks))]
    assert sum(sizes) == 50 and max(sizes) - min(sizes) <= 1


def test_the_digits_are_split_without_overlap():
    train, validation = load_sources(small_config())
    assert (len(train), len(validation)) == (1437, 360)
    assert train.images.shape[1:] == (16, 16, 3) and set(validation.labels) == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in validation.images)
