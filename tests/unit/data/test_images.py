"""What is done to images, and the images that are trouble: cut off, not JPEG, gray, CMYK."""

import itertools
import re

from resrep_dist.data import batches
from resrep_dist.data.augmentation import augment, is_mirrored, normalize
from resrep_dist.data.encoded import _random_window, center_crop, decode, random_resized_crop
from resrep_dist.data.imagefolder import image_folders
from resrep_dist.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from resrep_dist.data.order import evaluation_batches, training_batches
from resrep_dist.data.source import Source
from resrep_dist.data.tfrecord import imagenet_records
from resrep_dist.errors import SampleError
from tests.images import (
    CMYK_JPEG,
    NUM_CLASSES,
    RGB_CENTER,
    RGB_JPEG,
    example,
    jpeg,
    noise,
    write_image_folders,
    write_records,
)

import numpy as np
import pytest
import tensorflow as tf

GRAY_JPEG = tf.io.encode_jpeg(noise(40, 50, 1)).numpy()
PNG = tf.io.encode_png(noise(40, 50, 4)).numpy()


@pytest.mark.parametrize("encoded", [jpeg(7), GRAY_JPEG, CMYK_JPEG, PNG], ids=["rgb", "gray", "cmyk", "png"])
def test_every_kind_of_image_in_imagenet_is_cropped_for_training_and_evaluation(encoded):
    image = decode(tf.constant(encoded))
    assert image.shape[2] == 3 and image.dtype == tf.uint8
    for position in range(3):
        crop = random_resized_crop(tf.constant(encoded), 24, tf.constant(position, tf.int64), seed=1)
        assert crop.shape == [24, 24, 3] and 0 <= crop.numpy().min() <= crop.numpy().max() <= 255.5
    assert center_crop(tf.constant(encoded), 24, 0.875).shape == [24, 24, 3]


def test_cmyk_has_the_colors_that_pillow_gives():
    image = decode(tf.constant(CMYK_JPEG)).numpy()
    assert image.shape == (32, 40, 3)
    np.testing.assert_allclose(image.mean((0, 1)), [163.8, 164.7, 171.2], atol=3)


def test_evaluation_gives_the_pixels_that_torchvision_gives():
    crop = center_crop(tf.constant(RGB_JPEG), 8, 0.875).numpy()
    np.testing.assert_allclose(crop, RGB_CENTER, atol=1)


def test_a_window_decoded_alone_is_the_window_of_the_whole_image():
    encoded = tf.io.encode_jpeg(noise(60, 80, 3), quality=95)
    whole = decode(encoded)
    for position in tf.range(5, dtype=tf.int64):
        top, left, height, width = _random_window(tf.shape(whole), position, 1).numpy()
        window = tf.cast(whole[top : top + height, left : left + width], tf.float32)
        expected = tf.image.resize(window, [24, 24], antialias=True)
        received = random_resized_crop(encoded, 24, position, 1)
        # A lone window has no neighbors from which its border's colors are smoothed.
        assert np.abs(received - expected)[2:-2, 2:-2].max() < 2


def test_random_windows_have_the_published_areas_and_shapes():
    window = tf.function(_random_window)
    drawn = np.array([window(tf.constant([375, 500, 3]), tf.constant(i, tf.int64), 1) for i in range(400)])
    area, shape = drawn[:, 2] * drawn[:, 3] / (375 * 500), drawn[:, 3] / drawn[:, 2]
    assert 0.07 < area.min() < 0.12 and area.max() > 0.85
    assert 0.74 < shape.min() < 0.8 and 1.25 < shape.max() < 1.35
    assert (drawn[:, 0] + drawn[:, 2]).max() <= 375 and (drawn[:, 1] + drawn[:, 3]).max() <= 500
    np.testing.assert_array_equal(window(tf.constant([9, 900, 3]), tf.constant(0, tf.int64), 1), [0, 0, 9, 900])


def test_evaluation_resizes_the_short_side_and_takes_the_center():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 40:88] = 200
    encoded = tf.io.encode_png(image)
    crop = center_crop(encoded, 28, 0.875).numpy()
    expected = tf.image.resize(image, [32, 64], antialias=True).numpy()[2:30, 18:46]
    np.testing.assert_allclose(crop, expected, atol=1e-3)


def test_half_of_the_images_are_mirrored_and_pixels_are_normalized():
    images = tf.constant(np.broadcast_to(np.arange(32.0, dtype=np.float32)[None, None, :, None], (200, 32, 32, 1)))
    crops = augment(images, "pad_crop_flip", tf.range(200, dtype=tf.int64), 5).numpy()
    is_rising = crops[:, 16, 20, 0] > crops[:, 16, 12, 0]
    assert 70 < is_rising.sum() < 130
    plain = augment(images, "shift", tf.range(200, dtype=tf.int64), 5).numpy()
    np.testing.assert_array_equal(np.where(is_rising[:, None, None, None], crops, crops[:, :, ::-1]), plain)
    pixels = noise(8, 8, 3)
    np.testing.assert_allclose(
        normalize(tf.constant(pixels), (1, 2, 3), (4, 5, 6)), (pixels - [1, 2, 3]) / [4, 5, 6], rtol=1e-5, atol=1e-5
    )


def test_coins_follow_from_seed_and_position_and_are_fair():
    positions = tf.range(10_000, dtype=tf.int64)
    coins = is_mirrored(positions, 0).numpy()
    other = is_mirrored(positions, 1).numpy()
    np.testing.assert_array_equal(is_mirrored(positions[7:9], 0).numpy(), coins[7:9])
    # Five standard deviations of a fair coin; alike with the next position, the next epoch, another seed.
    for alike in (coins, coins[1:] == coins[:-1], coins[1437:] == coins[:-1437], coins == other):
        assert abs(alike.mean() - 0.5) < 0.03


def run_through(source, num_epochs=1):
    stream = training_batches(
        source, global_batch_size=5, augmentation="resized_crop_flip", seed=0, rank=0, num_ranks=1, first_step=0
    )
    list(itertools.islice(stream, num_epochs * len(source) // 5))


@pytest.mark.parametrize("length", [700, -2])
def test_a_cut_off_jpeg_is_named_in_training_and_evaluation(tmp_path, length):
    write_image_folders(tmp_path, 20, 10)
    for path in ("train/n00000001/00007.JPEG", "val/n00000002/00005.JPEG"):
        (tmp_path / path).write_bytes(tf.io.encode_jpeg(noise(40, 50, 3)).numpy()[:length])
    train, validation = image_folders(tmp_path, 16, 0.875)
    # A window above the damage is whole, so the first epoch may pass.
    with pytest.raises(SampleError, match=r"train/n00000001/00007.JPEG: .*; fix or replace the file") as error:
        run_through(train, num_epochs=4)
    assert "\n" not in str(error.value) and "{{" not in str(error.value) and error.value.exit_code == 2
    with pytest.raises(SampleError, match=r"val/n00000002/00005.JPEG"):
        list(evaluation_batches(validation, 4, 0, 1))
    with pytest.raises(SampleError, match=r"val/n00000002/00005.JPEG"):
        validation.first_images(10)


def test_a_file_that_vanishes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_PAUSES_SECONDS", (0.01,))
    train, _ = image_folders(write_image_folders(tmp_path, 20, 10), 16, 0.875)
    (tmp_path / "train/n00000001/00007.JPEG").unlink()
    with pytest.raises(SampleError, match=r"train/n00000001/00007.JPEG: .*No such file"):
        run_through(train)


@pytest.mark.parametrize(
    "record, reason",
    [
        (example(jpeg(1), NUM_CLASSES), "the label, counted from 0, is not one of the 3 classes:"),
        (example(jpeg(1), -1), "the label, counted from 0, is not one of the 3 classes:"),
        (example(jpeg(1)[:500], 0), "JPEG"),
        (b"not an example", "parse"),
    ],
    ids=["label_above", "label_0", "cut_off_jpeg", "no_example"],
)
def test_a_bad_record_is_named(tmp_path, record, reason):
    write_records(tmp_path, 20, 10, num_shards=4)
    with tf.io.TFRecordWriter(str(tmp_path / "train-00002-of-00004")) as writer:
        for data in (example(jpeg(1), 0), record, example(jpeg(1), 0)):
            writer.write(data)
    train, _ = imagenet_records(tmp_path, NUM_CLASSES, 16, 0.875, None)
    with pytest.raises(SampleError, match=rf"train-00002-of-00004: record 1: .*{reason}"):
        run_through(train)


def test_a_sample_that_can_be_read_the_second_time_costs_a_message_and_no_batch(tmp_path, caplog):
    source, _ = image_folders(write_image_folders(tmp_path, 20, 10), 16, 0.875)
    order = {"global_batch_size": 5, "augmentation": "resized_crop_flip", "seed": 0, "rank": 0, "num_ranks": 1}
    expected = list(itertools.islice(training_batches(source, **order, first_step=0), 8))
    path = tmp_path / "train/n00000001/00007.JPEG"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    check, source.check = source.check, lambda index: (path.write_bytes(good), check(index))
    received = list(itertools.islice(training_batches(source, **order, first_step=0), 8))
    for (images, labels), (expected_images, expected_labels) in zip(received, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)
    (message,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert re.search(r"00\d+\.JPEG and the 4 samples after it: one could not be read .*; they are read again", message)


def test_a_file_that_is_away_for_a_moment_is_waited_for(tmp_path, monkeypatch, caplog):
    source, _ = image_folders(write_image_folders(tmp_path, 20, 10), 16, 0.875)
    path, away = tmp_path / "train/n00000001/00007.JPEG", tmp_path / "away"
    path.rename(away)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            away.rename(path)

    monkeypatch.setattr(batches.time, "sleep", pause)
    run_through(source)
    assert pauses == [1, 5]
    assert "00007.JPEG; No such file or directory; trying again in 5 s" in caplog.text
    assert "they are read again" in caplog.text


def test_a_batch_that_fails_again_and_again_ends_the_run(tmp_path):
    source, _ = image_folders(write_image_folders(tmp_path, 20, 10), 16, 0.875)
    path = tmp_path / "train/n00000001/00007.JPEG"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    check = source.check

    def repaired_for_a_moment(index):
        path.write_bytes(good)
        check(index)
        path.write_bytes(good[:100])

    source.check = repaired_for_a_moment
    with pytest.raises(SampleError, match=r"one could not be read .*, but each can be read alone; .* 4 times in a row"):
        run_through(source)


def test_files_and_arrays_are_padded_with_the_same_black(tmp_path):
    files, _ = image_folders(write_image_folders(tmp_path), 16, 0.875)
    pixels = files.first_images(10) * IMAGENET_STD + IMAGENET_MEAN
    arrays = Source(pixels.astype(np.float32), np.zeros(10, np.int64), 1, IMAGENET_MEAN, IMAGENET_STD)
    places = tf.data.Dataset.from_tensors((tf.range(10, dtype=tf.int64), tf.range(10, dtype=tf.int64)))
    (from_files, _), (from_arrays, _) = (next(iter(source.load(places, 10, "shift", 5))) for source in (files, arrays))
    np.testing.assert_allclose(from_files, from_arrays, atol=1e-3)
    black = -np.divide(IMAGENET_MEAN, IMAGENET_STD)
    assert np.isclose(from_files[1:], black, atol=1e-4).all(-1).any(), "no crop reaches over the border"
