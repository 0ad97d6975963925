"""RandAugment: its operations against Pillow, and that they follow from seed and position."""

from resrep_dist.config import DataConfig, RandAugmentConfig
from resrep_dist.data.digits import digits
from resrep_dist.data.normalization import IMAGENET, Normalization
from resrep_dist.data.rand_augment import OPERATIONS, check_rand_augment, rand_augment
from resrep_dist.data.source import Source
from resrep_dist.data.synthetic import synthetic
from resrep_dist.errors import ConfigError
from tests.networks import random_source

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

MAGNITUDE = 0.6


def picture(height=24, width=32):
    """Smooth colors with some noise, and not the whole range."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([40 + 4 * rows, 60 + 3 * columns, 200 - 2 * rows - columns], -1)
    return (smooth + np.random.default_rng(0).integers(0, 20, smooth.shape)).astype(np.uint8)


def affine(image, numbers):
    return image.transform(image.size, Image.Transform.AFFINE, numbers)


BY_PILLOW = {
    "identity": lambda image, sign: image,
    # Pillow's coordinates are those of the pixels' corners.
    "shear_x": lambda image, sign: affine(image, (1, 0.3 * MAGNITUDE * sign, -0.15 * MAGNITUDE * sign, 0, 1, 0)),
    "shear_y": lambda image, sign: affine(image, (1, 0, 0, 0.3 * MAGNITUDE * sign, 1, -0.15 * MAGNITUDE * sign)),
    "translate_x": lambda image, sign: affine(image, (1, 0, sign * int(150 / 331 * 32 * MAGNITUDE), 0, 1, 0)),
    "translate_y": lambda image, sign: affine(image, (1, 0, 0, 0, 1, sign * int(150 / 331 * 24 * MAGNITUDE))),
    "rotate": lambda image, sign: image.rotate(30 * MAGNITUDE * sign),
    "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(1 + 0.9 * MAGNITUDE * sign),
    "color": lambda image, sign: ImageEnhance.Color(image).enhance(1 + 0.9 * MAGNITUDE * sign),
    "contrast": lambda image, sign: ImageEnhance.Contrast(image).enhance(1 + 0.9 * MAGNITUDE * sign),
    "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * MAGNITUDE * sign),
    "posterize": lambda image, sign: ImageOps.posterize(image, 6),
    "solarize": lambda image, sign: ImageOps.solarize(image, 255 * (1 - MAGNITUDE)),
    "auto_contrast": lambda image, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, sign: ImageOps.equalize(image),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pillow(name):
    assert OPERATIONS.keys() == BY_PILLOW.keys() and len(OPERATIONS) == 14
    image = picture()
    for sign in (1.0, -1.0):
        received = OPERATIONS[name](tf.constant(image, tf.float32), MAGNITUDE, tf.constant(sign)).numpy()
        expected = np.asarray(BY_PILLOW[name](Image.fromarray(image), sign), np.float32)
        is_equal = np.abs(received - expected) <= 1.51
        # Where an image is moved, the nearest pixel may be another one by rounding.
        assert is_equal.mean() > (0.97 if name in ("shear_x", "shear_y", "rotate") else 0.999), name
        assert (np.abs(received - image).max() > 2) == (name != "identity")


def test_what_an_image_becomes_follows_from_seed_and_position_alone():
    images = np.broadcast_to(picture().astype(np.float32), (40, 24, 32, 3))
    config, positions = RandAugmentConfig(num_operations=2, magnitude=20), np.arange(40) + 1000
    change = tf.function(lambda images, positions, seed: rand_augment(images, config, positions, seed))
    whole = change(images, positions, 3).numpy()
    np.testing.assert_array_equal(change(images[10:17], positions[10:17], 3), whole[10:17])
    assert whole.min() >= 0 and whole.max() <= 255
    assert len({image.tobytes() for image in whole}) > 30
    assert (np.abs(change(images, positions, 4).numpy() - whole).max((1, 2, 3)) > 5).mean() > 0.8
    still = RandAugmentConfig(num_operations=1, magnitude=0)
    unchanged = rand_augment(images, still, positions, 3).numpy()
    # But for the two operations that have no magnitude, and solarizing, which inverts what is 255.
    assert (np.abs(unchanged - images).max((1, 2, 3)) < 0.01).sum() > 25


def test_pixels_come_back_from_normalized_images():
    pixels = picture().astype(np.float32)
    for scale in (IMAGENET, Normalization((103.9, 116.8, 123.7), (1.0, 1.0, 2.0), is_bgr=True)):
        np.testing.assert_allclose(scale.pixels_of(scale(tf.constant(pixels))), pixels, atol=1e-3)
    train, _ = digits(16)
    levels = train.pixel_scale().pixels_of(tf.constant(train.images[:50])).numpy()
    assert abs(levels.min()) < 1e-3 and abs(levels.max() - 255) < 1e-3
    assert synthetic(8, 10, 16)[0].pixel_scale() is not None


def test_images_of_fractions_are_refused():
    config = DataConfig(source="arrays", global_batch_size=8, rand_augment=RandAugmentConfig())
    with pytest.raises(ConfigError, match=r"data.rand_augment: data.source arrays has images of fractions"):
        check_rand_augment(config, random_source())
    check_rand_augment(config, Source(picture()[None], np.zeros(1, np.int64), 2, (1.0,) * 3, (2.0,) * 3))
