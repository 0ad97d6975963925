"""Finds out what a folder or a file holds, so that a user need not say it."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from resrep_dist.data.cifar import NUM_CLASSES, find_sets
from resrep_dist.data.imagefolder import is_image
from resrep_dist.data.labels import NO_CLASS, are_one_hot
from resrep_dist.errors import DataError

import numpy as np

# They have 8 pixels. With fewer than 32 some networks have none left at their end.
_DIGITS_IMAGE_SIZE = 32


@dataclasses.dataclass(frozen=True)
class FoundData:
    """A data set as it was found."""

    source: str
    """`data.source`."""
    path: str | None
    """`data.path`."""
    num_classes: int
    """Number of classes."""
    num_images: int
    """Number of training images."""
    image_size: int | None = None
    """Height and width of the images, pixels; None if they are resized."""
    task: str = "classification"
    """`task`."""


def find_data(path: Path) -> FoundData:
    """Find out what a folder or a file holds.

    Args:
        path: A folder with `train/<class>/` and `val/<class>/`, an `.npz` file, a folder or tar archive of CIFAR's
            binary version, or the word `digits`.

    Raises:
        DataError: If it is none of these. The message says what was found and what to do.
    """
    if str(path) == "digits" and not path.exists():
        return FoundData("digits", None, 10, 1437, _DIGITS_IMAGE_SIZE)
    if path.suffix == ".npz" and path.is_file():
        return _find_arrays(path)
    if (path / "train").is_dir() and (path / "val").is_dir():
        classes = [entry for entry in os.scandir(path / "train") if entry.is_dir() and not entry.name.startswith(".")]
        num_images = sum(is_image(file) for entry in classes for file in os.scandir(entry.path))
        if not num_images:
            raise DataError(f"{path / 'train'}: no images in its folders; expected one folder for each class")
        return FoundData("imagefolder", str(path), len(classes), num_images)
    sets = find_sets(path)
    if len(sets) == 1:
        return FoundData(sets[0], str(path), NUM_CLASSES[sets[0]], 50_000, 32)
    raise DataError(
        f"data {path}: {_kind_of(path, sets)}; expected train/<class>/ and val/<class>/ with images (val may be every "
        "fifth of them), an .npz file with x_train, y_train, x_test and y_test, or a folder or tar archive of CIFAR's "
        "binary version"
    )


def _kind_of(path: Path, sets: Sequence[str]) -> str:
    """Return what was found, for a message."""
    if sets:
        return f"it holds {' and '.join(sets)}, not one of them"
    if path.is_dir():
        return f"it holds {', '.join(sorted(entry.name for entry in os.scandir(path))[:5]) or 'nothing'}"
    return "it is a file of another kind, or not whole" if path.exists() else "there is no such file or folder"


def _find_arrays(path: Path) -> FoundData:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels, others, images = (arrays[name] for name in ("y_train", "y_test", "x_train"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"data {path}: cannot be read ({error}); expected x_train, y_train, x_test and y_test"
        ) from None
    if labels.size == 0:
        raise DataError(f"data {path}: y_train is empty; expected labels and images")
    labels, others = (each[..., 0] if each.ndim > 1 and each.shape[-1] == 1 else each for each in (labels, others))
    task = {2: "multilabel", 3: "segmentation"}.get(labels.ndim, "classification")
    if are_one_hot(labels) and (others.ndim == 1 or are_one_hot(others)):
        task = "classification"
    of_pixels = labels[labels != NO_CLASS] if task == "segmentation" else labels
    num_classes = labels.shape[1] if labels.ndim == 2 else int(of_pixels.max(initial=0)) + 1
    return FoundData("npz", str(path), num_classes, len(images), int(images.shape[1]), task)
