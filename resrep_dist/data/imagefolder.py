"""Image files in a folder per class, like ImageNet: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.data.encoded import EncodedSource
from resrep_dist.data.normalization import IMAGENET, Normalization
from resrep_dist.data.source import checksum_of
from resrep_dist.errors import DataError

import numpy as np
import tensorflow as tf

# Longer lists of classes are compared by their checksum.
_MAX_NAMED = 100
_NUM_SIZES = 512
_SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif", ".pjpeg", ".png", ".bmp", ".gif")
_IN_FOLDERS = "folders inside of a class"
_HOW_TO_READ = "TensorFlow decodes JPEG, PNG, BMP and GIF; convert other images to one of them."
_log = logging.getLogger(__name__)


class ImageFolder(EncodedSource):
    """The images of one split. Class i is the i-th folder in the order of names, as in torchvision.

    Args:
        folder: Folder with one folder per class.
        image_size: Height and width of the images after cropping, pixels.
        crop_fraction: For evaluation the short side is resized to image_size / crop_fraction and the center is cropped.
        classes: Names of the classes in their order. None for the folders in `folder`.
        normalization: Scale of the pixels.

    Raises:
        DataError: If the folder is missing or has no folders, or one of them is empty or not of these classes.
    """

    def __init__(
        self,
        folder: Path,
        image_size: int,
        crop_fraction: float,
        classes: Sequence[str] | None = None,
        normalization: Normalization = IMAGENET,
    ) -> None:
        found = _class_names(folder)
        self.classes = list(classes) if classes is not None else found
        held = set(found)
        unknown = sorted(held - set(self.classes))
        if unknown:
            raise DataError(
                f"{folder / unknown[0]}: no such class in the training set ({len(self.classes)} classes); "
                "its folders must have the same names"
            )
        super().__init__(len(self.classes), image_size, crop_fraction, normalization)
        self._folder = folder
        files = [(name, label) for label, name in enumerate(self.classes) if name in held]
        left_out: Counter[str] = Counter()
        names = [_file_names(folder / name, left_out) for name, _ in files]
        if left_out:
            counts = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in left_out.most_common(10))
            _log.warning("%s: %d files are left out (%s). %s", folder, left_out.total(), counts, _HOW_TO_READ)
        self._names = [name for group in names for name in group]
        self._labels = np.repeat([label for _, label in files], [len(group) for group in names]).astype(np.int64)
        with tf.device("CPU:0"):
            self._tensors = [tf.constant([os.fsencode(n) for n in values]) for values in (self.classes, self._names)]
            self._tensors.append(tf.constant(self._labels))

    def __len__(self) -> int:
        return len(self._labels)

    def describe(self, index: int) -> str:
        return str(self._folder / self.classes[self._labels[index]] / self._names[index])

    def fingerprint(self) -> dict[str, Any]:
        return {
            **super().fingerprint(),
            "class names": self.classes if len(self.classes) <= _MAX_NAMED else checksum_of(self.classes),
            "checksum of the labels": checksum_of(self._labels),
            "checksum of the file names": checksum_of(self._names),
            "checksum of the file sizes": checksum_of(self._some_sizes()),
        }

    def _some_sizes(self) -> np.ndarray:
        """Return the sizes of some files, bytes: asking for those of all of ImageNet's takes a while."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), _NUM_SIZES)).astype(np.int64)
        paths = [self.describe(index) for index in chosen]
        return np.array([os.path.getsize(path) if os.path.exists(path) else -1 for path in paths], np.int64)

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Paths are joined when they are needed: all of ImageNet's 1.28 million would take 100 MB on every rank.
        classes, names, labels = self._tensors
        own_labels = tf.gather(labels, indices)
        parts = [str(self._folder), tf.gather(classes, own_labels), tf.gather(names, indices)]
        return tf.strings.join(parts, "/"), own_labels

    def read(self, *fetched: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        path, label = fetched
        return tf.io.read_file(path), label

    def bare_samples(self) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices([self.describe(index) for index in range(len(self))])

    def read_bare(self, sample: tf.Tensor) -> tf.Tensor:
        return tf.io.read_file(sample)


def image_folders(
    folder: Path, image_size: int, crop_fraction: float, normalization: Normalization = IMAGENET
) -> tuple[ImageFolder, ImageFolder]:
    """Find the images of a folder with `train` and `val`.

    Args:
        folder: The folder.
        image_size: Height and width of the images after cropping, pixels.
        crop_fraction: For evaluation the short side is resized to image_size / crop_fraction and the center is cropped.
        normalization: Scale of the pixels.

    Returns:
        Training set and validation set.

    Raises:
        DataError: As `ImageFolder`.
    """
    train = ImageFolder(folder / "train", image_size, crop_fraction, None, normalization)
    return train, ImageFolder(folder / "val", image_size, crop_fraction, train.classes, normalization)


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a class' folder is read as an image: a file that is not hidden, by its ending.

    Args:
        entry: The entry.
    """
    is_named_so = entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".")
    return is_named_so and not entry.is_dir()


def _class_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); expected a folder for each class") from None
    names = sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: {len(found)} files but no folders; expected one for each class, as <class>/*.JPEG")
    return names


def _file_names(folder: Path, left_out: Counter[str]) -> list[str]:
    """Return the names of a class' images; count the endings of its other files, but for hidden ones."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in found if entry.is_dir())
    left_out.update({_IN_FOLDERS: len(folders)} if folders else {})
    names = sorted(entry.name for entry in found if is_image(entry))
    others = [entry.name for entry in found if not (is_image(entry) or entry.is_dir())]
    left_out.update(Path(name).suffix.lower() for name in others)
    if not names and folders:
        raise DataError(
            f"{folder}: it holds folders, such as {folders[0]}, and no images; the images of a class stand in its "
            "folder itself, so move them there"
        )
    if not names:
        raise DataError(f"{folder}: no images ({', '.join(_SUFFIXES)}); fill this class or remove its folder")
    return names
