"""Sources of encoded images (JPEG, PNG): decoding, the standard crops of ImageNet, and reading in parallel.

Resizing is bilinear with antialiasing, as Pillow and with it torchvision do it: evaluation gives the same pixels
to within rounding. Without antialiasing differences of up to 24 of 255 were measured.

Grayscale and CMYK become RGB; what a file is, its first bytes say, not its name. A truncated JPEG is refused,
not recovered: the grey that would fill it is not what the label says. A window that ends before the damage is
whole, and is used.
"""

import abc
from typing import Any

from resrep_dist.data.augmentation import PADDING, augment, is_mirrored, normalise
from resrep_dist.data.source import ImageSource

import tensorflow as tf

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
# Gave the very pixels that Pillow gives; TensorFlow's default was off by up to 5 and no faster.
_DCT_METHOD = "INTEGER_ACCURATE"


class EncodedSource(ImageSource):
    """Images that are read and decoded when their turn comes.

    Args:
        image_size: height and width of the images that come out, pixels.
        crop_fraction: evaluation resizes the short side to image_size / crop_fraction and takes the centre.
    """

    def __init__(self, num_classes: int, image_size: int, crop_fraction: float) -> None:
        self.num_classes = num_classes
        self._image_size, self._crop_fraction = image_size, crop_fraction

    @abc.abstractmethod
    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What `read` needs, for a whole batch: int64 [B] -> tensors [B]."""

    @abc.abstractmethod
    def read(self, *fetched: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One sample: its bytes, string [], and its label, int64 []."""

    @abc.abstractmethod
    def bare_samples(self) -> tf.data.Dataset:
        """The samples as they lie on disk, for a benchmark: TensorFlow's own reading."""

    @abc.abstractmethod
    def read_bare(self, sample: tf.Tensor) -> tf.Tensor:
        """The bytes of the image of one of the bare samples."""

    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        # Crops pad with 0, which is black only before the mean is taken off. The others are normalised one by one: that
        # goes on beside the decoding, and was measured to cost less.
        is_padded = augmentation in PADDING

        def fetch(indices: tf.Tensor, positions: tf.Tensor) -> tuple[Any, ...]:
            # For the whole batch: coins that are tossed one by one cost a hundredth of the decoding.
            return self.fetch(indices), positions, is_mirrored(positions, seed)

        def sample(fetched: tuple[tf.Tensor, ...], position: tf.Tensor, coin: tf.Tensor) -> tuple[tf.Tensor, ...]:
            encoded, label = self.read(*fetched)
            if augmentation == "resized_crop_flip":
                crop = random_resized_crop(encoded, self._image_size, position, seed)
                image = tf.cond(coin, lambda: tf.reverse(crop, [1]), lambda: crop)
            else:
                image = centre_crop(encoded, self._image_size, self._crop_fraction)
            return image if is_padded else normalise(image, IMAGENET_MEAN, IMAGENET_STD), label, position

        def finish(images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if is_padded:
                images = normalise(augment(images, augmentation, positions, seed), IMAGENET_MEAN, IMAGENET_STD)
            return images, labels

        parallel: dict[str, Any] = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
        samples = places.map(fetch, **parallel).unbatch().map(sample, **parallel)
        return samples.batch(batch_size, **parallel).map(finish)


def random_resized_crop(encoded: tf.Tensor, image_size: int, position: tf.Tensor, seed: int) -> tf.Tensor:
    """Take a random window of 0.08 to 1 of the area and sides 3:4 to 4:3, and resize it.

    Only the window is decoded. An image so long that no window fits is taken whole.

    Returns:
        float32 [image_size, image_size, 3], pixel values.
    """

    def decode_window() -> tf.Tensor:
        window = _random_window(tf.image.extract_jpeg_shape(encoded), position, seed)
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method=_DCT_METHOD)

    def cut_window() -> tf.Tensor:
        image = decode(encoded)
        top, left, height, width = tf.unstack(_random_window(tf.shape(image), position, seed))
        return image[top : top + height, left : left + width]

    return resize(tf.cond(tf.io.is_jpeg(encoded), decode_window, cut_window), [image_size, image_size])


def centre_crop(encoded: tf.Tensor, image_size: int, crop_fraction: float) -> tf.Tensor:
    """Resize the short side to image_size / crop_fraction and take the centre: float32 [size, size, 3]."""
    image = decode(encoded)
    height, width = tf.unstack(tf.shape(image)[:2])
    short, target = tf.minimum(height, width), round(image_size / crop_fraction)
    size = tf.stack([height * target // short, width * target // short])
    # Half to even, as Python and with it torchvision rounds.
    top, left = tf.unstack(tf.cast(tf.round((tf.cast(size, tf.float32) - image_size) / 2.0), tf.int32))
    image = resize(image, size)[top : top + image_size, left : left + image_size]
    return tf.ensure_shape(image, [image_size, image_size, 3])


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """A whole image: uint8 [height, width, 3]."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.decode_jpeg(encoded, channels=3, dct_method=_DCT_METHOD),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def resize(image: tf.Tensor, size: Any) -> tf.Tensor:
    """Bilinear with antialiasing: float32 [*size, 3]."""
    return tf.image.resize(image, size, antialias=True)


def _random_window(shape: tf.Tensor, position: tf.Tensor, seed: int) -> tf.Tensor:
    """Top, left, height and width of a random window, int32 [4]."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=[tf.constant(seed, tf.int64), position],
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)
