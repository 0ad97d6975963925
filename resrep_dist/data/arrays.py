"""Opens what a program gives as data: a source, arrays, or a dataset of TensorFlow."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from resrep_dist.data.labels import are_one_hot, are_rows, require_numbers
from resrep_dist.data.source import ImageSource, Source
from resrep_dist.errors import DataError

import numpy as np
import tensorflow as tf

Data: TypeAlias = ImageSource | tuple[Any, Any] | Any
"""Images and labels: a source, a pair of arrays, or a dataset of such pairs, batched or not."""


def open_sets(sets: Sequence[Data], output_shape: tuple[int | None, ...]) -> list[ImageSource]:
    """Open the sets of one task.

    Args:
        sets: Images and labels of each.
        output_shape: Shape of the model's outputs, which says how many classes there are, and whether of pixels.

    Raises:
        DataError: If they are no images and labels, or the labels are no classes.
    """
    # Where one set has several labels for an image, another may have one for each by chance.
    opened = [data if isinstance(data, ImageSource) else _arrays(data) for data in sets]
    is_multilabel = any(
        data.task == "multilabel" if isinstance(data, ImageSource) else are_rows(data[1]) and not are_one_hot(data[1])
        for data in opened
    )
    return [data if isinstance(data, ImageSource) else _source(*data, output_shape, is_multilabel) for data in opened]


def _arrays(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels, those in a column as [N]."""
    if isinstance(data, tf.data.Dataset):
        data = _read(data)
    if not isinstance(data, tuple | list) or len(data) != 2:
        received = f"a {type(data).__name__}" + (f" of {len(data)}" if isinstance(data, tuple | list) else "")
        raise DataError(
            f"data: received {received}, expected a Source, a pair (images, labels), or a tf.data.Dataset of such pairs"
        )
    images, labels = (np.asarray(part) for part in data)
    # Before rows are compared and counted.
    require_numbers(labels)
    return images, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _source(
    images: np.ndarray, labels: np.ndarray, output_shape: tuple[int | None, ...], is_multilabel: bool
) -> ImageSource:
    num_classes = int(output_shape[-1] or 0)
    has_all_classes = labels.ndim == 2 and labels.shape[1] == num_classes
    is_of_labels = has_all_classes and is_multilabel and are_rows(labels)
    if has_all_classes and not is_of_labels:
        labels = labels.argmax(axis=1)
    is_of_pixels = labels.ndim == 3 and len(output_shape) == 4
    if images.ndim != 4 or not (labels.ndim == 1 or is_of_pixels or is_of_labels):
        raise DataError(
            f"data: received arrays of shapes {images.shape} and {labels.shape}, expected images [N, height, width, "
            f"channels] and labels [N], or one-hot labels [N, {num_classes}] as the model has {num_classes} outputs, "
            "or several labels of 0 and 1 of the same shape, or masks [N, height, width]"
        )
    return Source(images.astype(np.float32), labels, num_classes)


def _read(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not all(isinstance(each, tf.TensorSpec) for each in spec):
        raise DataError(f"data: a dataset of {spec}, expected pairs of images and labels")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError("data: the dataset is endless, expected each image once; leave out `repeat`")
    samples = (dataset.unbatch() if spec[0].shape.rank == 4 else dataset).batch(256)
    parts = [(images.numpy(), labels.numpy()) for images, labels in samples]
    if not parts:
        raise DataError("data: the dataset is empty")
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
