"""Sources of encoded images (JPEG, PNG): decoding, the usual crops for ImageNet, and reading in parallel.

Resizing is bilinear with antialiasing, as in Pillow and therefore torchvision, so that evaluation sees the same pixels
except for rounding. Without antialiasing differences of up to 24 of 255 were measured.

Grayscale and CMYK become RGB. The format of a file is that of its first bytes, not that of its name. A truncated JPEG
is an error, since its missing part would be filled with gray; a crop that ends before the damage is used.
"""

import abc
from typing import Any

from resrep_dist.data.augmentation import PADDING, augment, is_mirrored
from resrep_dist.data.batches import NUM_PARALLEL_BATCHES
from resrep_dist.data.normalization import IMAGENET, Normalization
from resrep_dist.data.source import ImageSource

import tensorflow as tf

# Gives exactly the pixels of Pillow; TensorFlow's default differed by up to 5 of 255 and was not faster.
_DCT_METHOD = "INTEGER_ACCURATE"


class EncodedSource(ImageSource):
    """Images that are read and decoded when they are needed.

    Args:
        num_classes: Number of classes.
        image_size: Height and width of the images after cropping, pixels.
        crop_fraction: For evaluation the short side is resized to image_size / crop_fraction and the center is cropped.
        normalization: Scale of the pixels.
    """

    def __init__(
        self, num_classes: int, image_size: int, crop_fraction: float, normalization: Normalization = IMAGENET
    ) -> None:
        self.num_classes, self._normalize = num_classes, normalization
        self._image_size, self._crop_fraction = image_size, crop_fraction

    def pixel_scale(self) -> Normalization | None:
        return self._normalize

    @abc.abstractmethod
    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return what `read` needs for a whole batch of samples: int64 [B] -> tensors [B]."""

    @abc.abstractmethod
    def read(self, *fetched: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the encoded image, string [], and the label, int64 [], of one sample of a fetched batch."""

    @abc.abstractmethod
    def bare_samples(self) -> tf.data.Dataset:
        """Return all samples in the order of the files, read by TensorFlow alone, for a benchmark."""

    @abc.abstractmethod
    def read_bare(self, sample: tf.Tensor) -> tf.Tensor:
        """Return the encoded image, string [], of an element of `bare_samples`."""

    def load(self, places: tf.data.Dataset, batch_size: int, augmentation: str, seed: int) -> tf.data.Dataset:
        # Padding with 0 is black only before the mean is subtracted. Images without padding are normalized one by one,
        # in parallel with the decoding, which was measured to take less time.
        is_padded = augmentation in PADDING

        def fetch(indices: tf.Tensor, positions: tf.Tensor) -> tuple[Any, ...]:
            # For the whole batch: one by one, `is_mirrored` takes a hundredth of the time of the decoding.
            return self.fetch(indices), positions, is_mirrored(positions, seed)

        def sample(fetched: tuple[tf.Tensor, ...], position: tf.Tensor, coin: tf.Tensor) -> tuple[tf.Tensor, ...]:
            encoded, label = self.read(*fetched)
            if augmentation == "resized_crop_flip":
                crop = random_resized_crop(encoded, self._image_size, position, seed)
                image = tf.cond(coin, lambda: tf.reverse(crop, [1]), lambda: crop)
            else:
                image = center_crop(encoded, self._image_size, self._crop_fraction)
            return image if is_padded else self._normalize(image), label, position

        def finish(images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if is_padded:
                images = self._normalize(augment(images, augmentation, positions, seed))
            return images, labels

        few: dict[str, Any] = {"num_parallel_calls": NUM_PARALLEL_BATCHES, "deterministic": True}
        samples = places.map(fetch, **few).unbatch()
        samples = samples.map(sample, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return samples.batch(batch_size, **few).map(finish)


def random_resized_crop(encoded: tf.Tensor, image_size: int, position: tf.Tensor, seed: int) -> tf.Tensor:
    """Crop a random window and resize it (Szegedy et al., 2015, section 6).

    The window has 0.08 to 1 of the area and an aspect ratio of 3:4 to 4:3. Only the window of a JPEG is decoded.
    If no window fits, because the image is too long, the whole image is resized.

    Args:
        encoded: The file's bytes, string [].
        image_size: Height and width of the result, pixels.
        position: Position of the sample in training, int64 [].
        seed: Seed of the run.

    Returns:
        float32 [image_size, image_size, 3], values from 0 to 255.
    """

    def decode_window() -> tf.Tensor:
        window = _random_window(tf.image.extract_jpeg_shape(encoded), position, seed)
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method=_DCT_METHOD)

    def cut_window() -> tf.Tensor:
        image = decode(encoded)
        top, left, height, width = tf.unstack(_random_window(tf.shape(image), position, seed))
        return image[top : top + height, left : left + width]

    return resize(tf.cond(tf.io.is_jpeg(encoded), decode_window, cut_window), [image_size, image_size])


def center_crop(encoded: tf.Tensor, image_size: int, crop_fraction: float) -> tf.Tensor:
    """Resize the short side to image_size / crop_fraction and crop the center.

    Args:
        encoded: The file's bytes, string [].
        image_size: Height and width of the result, pixels.
        crop_fraction: Fraction of the short side that remains.

    Returns:
        float32 [image_size, image_size, 3], values from 0 to 255.
    """
    image = decode(encoded)
    height, width = tf.unstack(tf.shape(image)[:2])
    short, target = tf.minimum(height, width), round(image_size / crop_fraction)
    size = tf.stack([height * target // short, width * target // short])
    # Half to even, as Python and therefore torchvision round.
    top, left = tf.unstack(tf.cast(tf.round((tf.cast(size, tf.float32) - image_size) / 2.0), tf.int32))
    image = resize(image, size)[top : top + image_size, left : left + image_size]
    return tf.ensure_shape(image, [image_size, image_size, 3])


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decode a whole image, string [], as uint8 [height, width, 3]."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.decode_jpeg(encoded, channels=3, dct_method=_DCT_METHOD),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def resize(image: tf.Tensor, size: Any) -> tf.Tensor:
    """Resize an image [height, width, 3] to `size`, [2], by bilinear interpolation with antialiasing, float32."""
    return tf.image.resize(image, size, antialias=True)


def _random_window(shape: tf.Tensor, position: tf.Tensor, seed: int) -> tf.Tensor:
    """Draw top, left, height and width of a random window, int32 [4]."""
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
