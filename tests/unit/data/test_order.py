"""One order of samples for every source and any number of ranks, read off the samples themselves."""

import itertools

from resrep_dist.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from resrep_dist.data.order import (
    evaluation_batches,
    first_epoch_images,
    rank_part,
    sample_indices,
    training_batches,
)
from resrep_dist.data.source import Source
from tests.images import LEVEL_STEP, label_of, numbers_of, write_image_folders, write_records
from tests.networks import random_source, small_config, sources_of

import numpy as np
import pytest
import tensorflow as tf

NUM_SAMPLES, GLOBAL_BATCH_SIZE, SIZE = 50, 14, 16
STEPS_OF_THREE_EPOCHS = 11


def test_every_epoch_holds_every_sample_once_in_another_order():
    epochs = [sample_indices(tf.range(n * 97, (n + 1) * 97, dtype=tf.int64), 97, seed=3).numpy() for n in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(97))
    for a, b in itertools.combinations(epochs, 2):
        assert (a == b).mean() < 0.1


def test_batches_that_are_copied_to_a_device_are_the_same(monkeypatch):
    options = {"global_batch_size": 8, "augmentation": "none", "seed": 1, "rank": 0, "num_ranks": 1, "first_step": 3}

    def first_batches():
        return list(itertools.islice(training_batches(random_source(), **options, num_threads=1), 3))

    expected, copies, copy = first_batches(), [], tf.data.experimental.prefetch_to_device
    # A CPU in place of the GPU.
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: [tf.config.LogicalDevice("/device:CPU:0", "GPU")])
    monkeypatch.setattr(tf.data.experimental, "prefetch_to_device", lambda name: copies.append(name) or copy(name))
    received = first_batches()
    assert copies == ["/device:CPU:0"]
    for batch, same in zip(received, expected, strict=True):
        for values, same_values in zip(batch, same, strict=True):
            np.testing.assert_array_equal(values, same_values)


@pytest.fixture(scope="module", params=["arrays", "imagefolder", "tfrecord"])
def sources(request, tmp_path_factory):
    """Training and validation set, and an augmentation, of each kind of source."""
    if request.param == "arrays":
        return *(gray_levels(count) for count in (NUM_SAMPLES, 20)), "pad_crop_flip"
    write = {"imagefolder": write_image_folders, "tfrecord": write_records}[request.param]
    folder = write(tmp_path_factory.mktemp(request.param))
    data = {"source": request.param, "path": str(folder)}
    return *sources_of(small_config(data=data, model={"image_size": SIZE})), "resized_crop_flip"


def gray_levels(count):
    levels = LEVEL_STEP * np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (count, SIZE, SIZE, 3))
    return Source(images, np.array([label_of(i) for i in range(count)]), 3, IMAGENET_MEAN, IMAGENET_STD)


def batches(source, augmentation, num_ranks, first_step=0, num_steps=STEPS_OF_THREE_EPOCHS):
    """Global batches, put together from the parts of the ranks: pairs of images and labels."""
    parts = []
    for rank in range(num_ranks):
        stream = training_batches(
            source, global_batch_size=GLOBAL_BATCH_SIZE, augmentation=augmentation, seed=1, rank=rank,
            num_ranks=num_ranks, first_step=first_step,
        )  # fmt: skip
        parts.append([[part.numpy() for part in batch] for batch in itertools.islice(stream, num_steps)])
    return [[np.concatenate(arrays) for arrays in zip(*step, strict=True)] for step in zip(*parts, strict=True)]


def sample_numbers(images):
    # Cropping over the border of an array brings black in; the brightest pixel shows the level.
    brightest = images.max((1, 2), keepdims=True)
    return numbers_of(np.broadcast_to(brightest, images.shape))


def test_recorded_samples_are_the_same_for_any_number_of_ranks_and_complete(sources):
    source, _, augmentation = sources
    one = batches(source, augmentation, 1)
    for num_ranks in (2, 3, 4):
        for (images, labels), (same_images, same_labels) in zip(
            one, batches(source, augmentation, num_ranks), strict=True
        ):
            np.testing.assert_array_equal(sample_numbers(images), sample_numbers(same_images))
            np.testing.assert_array_equal(images, same_images)
            np.testing.assert_array_equal(labels, same_labels)
    seen = np.concatenate([sample_numbers(images) for images, _ in one])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in one]), [label_of(number) for number in seen])
    for epoch in range(3):
        assert sorted(seen[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES]) == list(range(NUM_SAMPLES))


def test_a_run_resumes_in_the_middle_on_another_number_of_ranks(sources):
    source, _, augmentation = sources
    whole = batches(source, augmentation, 2)
    for step, num_ranks in ((3, 1), (5, 3), (9, 4)):
        rest = batches(source, augmentation, num_ranks, first_step=step, num_steps=STEPS_OF_THREE_EPOCHS - step)
        for expected, received in zip(whole[step:], rest, strict=True):
            np.testing.assert_array_equal(expected[0], received[0])
            np.testing.assert_array_equal(expected[1], received[1])


def test_streams_do_not_end(sources):
    source, _, augmentation = sources
    assert len(batches(source, augmentation, 4, num_steps=40)) == 40


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_evaluation_takes_every_sample_once(sources, num_ranks):
    _, source, _ = sources
    seen = [batch for r in range(num_ranks) for batch in evaluation_batches(source, 7, r, num_ranks)]
    numbers = np.concatenate([numbers_of(images.numpy()) for images, _ in seen])
    assert sorted(numbers) == list(range(20))
    labels = np.concatenate([labels for _, labels in seen])
    np.testing.assert_array_equal(labels, [label_of(number) for number in numbers])
    np.testing.assert_array_equal(source.first_images(9), np.concatenate([images for images, _ in seen])[:9])


def test_no_iterator_tunes_itself():
    """One that does can hold Python's lock for a minute when it is dropped."""
    source = random_source()
    training = training_batches(
        source, global_batch_size=8, augmentation="none", seed=0, rank=0, num_ranks=1, first_step=0, num_threads=3
    )
    for batches in (training, evaluation_batches(source, 8, 0, 1, num_threads=3)):
        options = batches._dataset_from(0).options()
        assert options.autotune.enabled is False and options.threading.private_threadpool_size == 3


def test_the_first_images_of_an_epoch_are_those_of_its_order_without_augmentation(sources):
    source, _, _ = sources
    order = sample_indices(tf.range(50, dtype=tf.int64), 50, seed=3).numpy()
    np.testing.assert_array_equal(first_epoch_images(source, 40, seed=3), source.first_images(50)[order[:40]])
    assert sorted(numbers_of(first_epoch_images(source, 999, seed=3))) == list(range(50))


def test_parts_of_ranks_differ_by_at_most_one():
    sizes = [end - start for start, end in (rank_part(50, r, 4) for r in range(4))]
    assert sum(sizes) == 50 and max(sizes) - min(sizes) <= 1


def test_augmentation_follows_from_seed_and_position_and_can_be_off():
    source = random_source(50, image_size=SIZE)
    plain, shifted = (batches(source, name, 1, num_steps=2)[0][0] for name in ("none", "shift"))
    assert all(any(np.array_equal(image, original) for original in source.images) for image in plain)
    for position, (image, moved) in enumerate(zip(plain, shifted, strict=True)):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        expected = tf.image.stateless_random_crop(padded, [SIZE, SIZE, 3], [1, position])
        np.testing.assert_array_equal(moved, expected)


def test_the_digits_are_split_without_overlap():
    train, validation = sources_of(small_config())
    assert (len(train), len(validation)) == (1437, 360)
    assert train.images.shape[1:] == (16, 16, 3) and set(validation.labels) == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in validation.images)
