"""Small real image sets in ImageNet's layouts, and the images that are trouble in practice.

Every image of a set has one gray level, `LEVEL_STEP` times its number in its split: whatever a pipeline crops,
resizes or mirrors, the number can be read from the pixels.
"""

import base64
from pathlib import Path

from resrep_dist.data.normalization import IMAGENET_MEAN, IMAGENET_STD

import numpy as np
import tensorflow as tf

LEVEL_STEP = 4
NUM_CLASSES = 3
# 40 x 32 pixels, written by Pillow in the color space CMYK; TensorFlow cannot write one.
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAKBwcIBwYKCAgICwoKCw4YEA4NDQ4dFRYRGCMfJSQiHyIhJis3LyYpNCkhIjBBMTQ5Oz4+PiUuRElDPEg3"
    "PT47/8AAFAgAIAAoBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAE"
    "EQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6"
    "g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkA"
    "SwAAPwD1q6716x9t969allr1asa670fbfeqcstFYt13o+2+9UpZaKxrrvR9t96pSy0Vi3Xej7b71Sllor2a671z/ANt966eWWisa670fbfeqUstF"
    "Yt13o+2+9UpZaKxrrvR9t96pSy0Vi3Xej7b71Sllor2a671z/wBt966eWWisa670fbfeqUstFYt13o+2+9UpZaKxrrvR9t96pSy0Vi3Xej7b71Tl"
    "lor2a671z/233rppZaKxrrvR9t96pSy0Vi3Xej7b71SllorGuu9H233qnLLRWLdd6PtvvVKWWiv/2Q=="
)
# 30 x 24 pixels, and what Pillow makes of them by Resize(9) and CenterCrop(8) of torchvision: uint8 [8, 8, 3].
RGB_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQ"
    "YEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAYAB4D"
    "ASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB"
    "kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ"
    "mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQF"
    "BgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5"
    "OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX"
    "2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDh0tBkE8NnoatpaLtVQ4x6DnHFaKWX8R+YHJ9R2/z+FXre0XKsRjaeScAd/Xn86zjP"
    "uRhcYZ1vaHAZievU8Y/xrQtLPzOc4UjhjjDdKvJYFQvyYBH8Ixz1/lV6C1RlJmIiyBg9Cf09c1vCWlz36GL03K0FoAoGNucDgdQKvRWR+ViFBUY+"
    "bt7+v+e1FFeensfnuFqSZftrQRrsPDYA+9jkevarttaKRlkEgI4Vxuxzn+tFFaxd43PoMPVk0f/Z"
)
RGB_CENTER = np.frombuffer(
    base64.b64decode(
        "MQ8ZTA8jZA8tbgkuhws8nQ5ItxFYyRFmNyQlVic2aCE8dB9AgSBFnChXsylnwiVwMz0rUT8/YjdIcTdOgTpQnkRnrjxxvzt8LFczR1VEXFJRdlpf"
        "jFdfn1Rusk5+zlmTLXRCSHJOYnVeeHdnkHVsnGt5s2mQxWmaMItPRYdSYoxidpBtk5d+opGPsIacw4enMKpeSq9gWKhkbKd2iqeCqLCZu62ixqik"
        "NMNuS8VsXsN1b7+EjsGQrcunv8Wvy8Gx"
    ),
    np.uint8,
).reshape(8, 8, 3)


def jpeg(number: int, height: int = 40, width: int = 50) -> bytes:
    """A JPEG of one gray level."""
    pixels = np.full((height, width, 3), LEVEL_STEP * number, np.uint8)
    return tf.io.encode_jpeg(pixels, quality=100).numpy()


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def numbers_of(images: np.ndarray) -> np.ndarray:
    """The number of each normalized image, [B]."""
    pixels = images * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    levels = pixels.mean((1, 2, 3)) / LEVEL_STEP
    numbers = np.rint(levels).astype(int)
    assert np.abs(levels - numbers).max() < 0.3
    return numbers


def label_of(number: int) -> int:
    return number % NUM_CLASSES


def write_image_folders(folder: Path, num_train: int = 50, num_validation: int = 20) -> Path:
    """`train/<class>/*.JPEG` and `val/<class>/*.JPEG`; sorted by class, then number."""
    for split, count in (("train", num_train), ("val", num_validation)):
        for number in range(count):
            path = folder / split / f"n{label_of(number):08d}" / f"{number:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
    return folder


def example(encoded: bytes, label: int) -> bytes:
    """A record as ImageNet's classic files have it: labels start at 1."""
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label + 1])),
        "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"n01440764_1.JPEG"])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_records(folder: Path, num_train: int = 50, num_validation: int = 20, num_shards: int = 4) -> Path:
    """`train-00000-of-00004` and so on, `validation-00000-of-00002`; shards of different length."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, shards in (("train", num_train, num_shards), ("validation", num_validation, 2)):
        for shard, numbers in enumerate(np.array_split(np.arange(count), shards)):
            with tf.io.TFRecordWriter(str(folder / f"{split}-{shard:05d}-of-{shards:05d}")) as writer:
                for number in numbers:
                    writer.write(example(jpeg(number), label_of(number)))
    return folder
