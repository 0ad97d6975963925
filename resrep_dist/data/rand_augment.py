"""RandAugment: a few random operations of one magnitude on each training image.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020 (arXiv 1909.13719).
The 14 operations and their ranges are those of the paper, with magnitudes from 0 to 30 and black where an image was
moved away, as in torchvision. Random numbers are stateless functions of seed and position, as in `augmentation.py`.
"""

import functools
import math
from collections.abc import Callable

from resrep_dist.config import DataConfig, RandAugmentConfig
from resrep_dist.data.source import ImageSource
from resrep_dist.errors import ConfigError

import tensorflow as tf

# Added to the seed, which has less than 32 bits, so that no other random numbers are the same.
_STREAM = 1 << 34
_MAX_MAGNITUDE = 30
_Operation = Callable[[tf.Tensor, float, tf.Tensor], tf.Tensor]
"""A function of an image [height, width, channels] from 0 to 255, the magnitude as a fraction, and a sign, 1 or -1."""


def check_rand_augment(config: DataConfig, source: ImageSource) -> None:
    """Check that the pixels of a source are known, on which the operations are defined.

    Args:
        config: The section `data`.
        source: The training set.

    Raises:
        ConfigError: If they are not.
    """
    if config.rand_augment is not None and source.pixel_scale() is None:
        raise ConfigError(
            f"data.rand_augment: data.source {config.source} has images of fractions, whose scale is not known, but "
            "its operations need pixels from 0 to 255; give whole numbers with data.normalization, or leave it out"
        )


def rand_augment(images: tf.Tensor, config: RandAugmentConfig, positions: tf.Tensor, seed: int) -> tf.Tensor:
    """Apply random operations, the same for a position whatever else is in the batch.

    Args:
        images: Pixels from 0 to 255, float32 [B, height, width, channels].
        config: Number of operations and magnitude.
        positions: Position of each sample in training, int64 [B].
        seed: Seed of the run.

    Returns:
        Pixels from 0 to 255 of the same shape and type.
    """
    magnitude = config.magnitude / _MAX_MAGNITUDE

    # Of its own, so that its many branches are traced once and not once for each operation on an image.
    @tf.function(autograph=False)
    def apply(image: tf.Tensor, number: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
        branches = [functools.partial(operation, image, magnitude, sign) for operation in OPERATIONS.values()]
        return tf.ensure_shape(tf.switch_case(number, branches), image.shape)

    def changed(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, position = pair
        seeds = [tf.constant(seed + _STREAM, tf.int64), position]
        numbers = tf.random.stateless_uniform([config.num_operations, 2], seeds, maxval=tf.int32.max, dtype=tf.int32)
        for number, coin in map(tf.unstack, tf.unstack(numbers)):
            image = apply(image, number % len(OPERATIONS), tf.cast(2 * (coin % 2) - 1, tf.float32))
        return tf.clip_by_value(image, 0.0, 255.0)

    return tf.map_fn(changed, (images, positions), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32))


def _moved(image: tf.Tensor, numbers: list[tf.Tensor | float]) -> tf.Tensor:
    """Return the image whose pixel (x, y) is that of (a x + b y + c, d x + e y + f), or black outside."""
    transform = tf.stack([tf.cast(number, tf.float32) for number in [*numbers, 0.0, 0.0]])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=image.shape[:2],
        fill_value=0.0,
        interpolation="NEAREST",
    )[0]


def _shear_x(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return _moved(image, [1.0, sign * 0.3 * magnitude, 0.0, 0.0, 1.0, 0.0])


def _shear_y(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return _moved(image, [1.0, 0.0, 0.0, sign * 0.3 * magnitude, 1.0, 0.0])


def _translate_x(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    pixels = int(150 / 331 * image.shape[1] * magnitude)
    return _moved(image, [1.0, 0.0, sign * pixels, 0.0, 1.0, 0.0])


def _translate_y(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    pixels = int(150 / 331 * image.shape[0] * magnitude)
    return _moved(image, [1.0, 0.0, 0.0, 0.0, 1.0, sign * pixels])


def _rotate(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    angle = math.radians(30 * magnitude)
    cosine, sine = math.cos(angle), sign * math.sin(angle)
    x, y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    return _moved(image, [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y])


def _away_from(degenerate: tf.Tensor, image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    """Return the image moved along the line from a degenerate image: 0 gives that one, 1 the image itself."""
    return tf.clip_by_value(degenerate + (1.0 + sign * 0.9 * magnitude) * (image - degenerate), 0.0, 255.0)


def _gray(image: tf.Tensor) -> tf.Tensor:
    weights = [0.299, 0.587, 0.114] if image.shape[-1] == 3 else [1.0 / image.shape[-1]] * image.shape[-1]
    return tf.reduce_sum(image * tf.constant(weights), -1, keepdims=True)


def _brightness(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return _away_from(tf.zeros_like(image), image, magnitude, sign)


def _color(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return _away_from(_gray(image), image, magnitude, sign)


def _contrast(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return _away_from(tf.reduce_mean(_gray(image)), image, magnitude, sign)


def _sharpness(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
    # Channels as a batch; the border stays as it is.
    planes = tf.transpose(image, [2, 0, 1])[..., tf.newaxis]
    smooth = tf.nn.conv2d(planes, kernel[..., tf.newaxis, tf.newaxis], 1, "VALID")
    smooth = tf.pad(tf.transpose(smooth[..., 0], [1, 2, 0]), [[1, 1], [1, 1], [0, 0]])
    is_inside = tf.pad(tf.ones([image.shape[0] - 2, image.shape[1] - 2, 1], tf.bool), [[1, 1], [1, 1], [0, 0]])
    return _away_from(tf.where(is_inside, smooth, image), image, magnitude, sign)


def _posterize(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    step = float(2 ** round(4 * magnitude))
    return tf.floor(image / step) * step


def _solarize(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return tf.where(image < 255.0 * (1.0 - magnitude), image, 255.0 - image)


def _auto_contrast(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    low, high = tf.reduce_min(image, [0, 1]), tf.reduce_max(image, [0, 1])
    return tf.where(high > low, (image - low) * tf.math.divide_no_nan(255.0, high - low), image)


def _equalize(image: tf.Tensor, magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    def of_channel(plane: tf.Tensor) -> tf.Tensor:
        levels = tf.cast(tf.round(plane), tf.int32)
        counts = tf.math.bincount(tf.reshape(levels, [-1]), minlength=256, maxlength=256)
        # As in Pillow: the pixels of the brightest level do not count.
        step = (tf.size(levels) - counts[tf.reduce_max(levels)]) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        return tf.where(step > 0, tf.cast(tf.gather(tf.minimum(table, 255), levels), tf.float32), plane)

    return tf.stack([of_channel(plane) for plane in tf.unstack(image, axis=-1)], -1)


OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image, magnitude, sign: image,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
"""The operations by name."""
