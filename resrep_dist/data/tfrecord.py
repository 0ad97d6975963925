"""ImageNet as TFRecord shards, `train-00000-of-01024` and `validation-00000-of-00128`, read record by record.

If each rank read its own shards, the batches would depend on the number of ranks. Since the offset of every record is
known, records are read like files: in one order for all ranks, from any step.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resrep_dist.data.encoded import EncodedSource
from resrep_dist.data.normalization import IMAGENET, Normalization
from resrep_dist.data.record_index import RecordIndex, RecordReader, index_records
from resrep_dist.data.source import checksum_of
from resrep_dist.errors import DataError

import tensorflow as tf

Parse = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Parses a record, string [], into an encoded image, string [], and a label, int64 []."""


class RecordSource(EncodedSource):
    """Images in TFRecord files.

    Args:
        index: The records.
        parse: Parses a record.
        num_classes: Number of classes.
        image_size: Height and width of the images after cropping, pixels.
        crop_fraction: For evaluation the short side is resized to image_size / crop_fraction and the center is cropped.
        normalization: Scale of the pixels.
    """

    def __init__(
        self,
        index: RecordIndex,
        parse: Parse,
        num_classes: int,
        image_size: int,
        crop_fraction: float,
        normalization: Normalization = IMAGENET,
    ) -> None:
        super().__init__(num_classes, image_size, crop_fraction, normalization)
        self._index, self._reader, self._parse = index, RecordReader(index), parse

    def __len__(self) -> int:
        return len(self._index)

    def describe(self, index: int) -> str:
        return self._index.describe(index)

    def fingerprint(self) -> dict[str, Any]:
        return {
            **super().fingerprint(),
            "checksum of the file names": checksum_of([path.name for path in self._index.paths]),
            "checksum of the records' lengths": checksum_of(self._index.lengths),
        }

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Stateless, since a record depends on its index only. With a stateful function TensorFlow's op determinism
        # would run the whole pipeline in one thread, without prefetching.
        records = tf.numpy_function(self._reader.read, [indices], tf.string, stateful=False)
        return (tf.ensure_shape(records, indices.shape),)

    def read(self, *fetched: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = self._parse(fetched[0])
        is_known = tf.logical_and(label >= 0, label < self.num_classes)
        message = f"the label, counted from 0, is not one of the {self.num_classes} classes:"
        with tf.control_dependencies([tf.debugging.Assert(is_known, [message, label])]):
            return tf.identity(encoded), label

    def bare_samples(self) -> tf.data.Dataset:
        return tf.data.TFRecordDataset([str(path) for path in self._index.paths])

    def read_bare(self, sample: tf.Tensor) -> tf.Tensor:
        return self._parse(sample)[0]


def imagenet_records(
    folder: Path,
    num_classes: int,
    image_size: int,
    crop_fraction: float,
    index_folder: Path | None,
    normalization: Normalization = IMAGENET,
) -> tuple[RecordSource, RecordSource]:
    """Open ImageNet's shards, whose labels start at 1, since 0 is the background.

    Args:
        folder: Folder with the shards of both splits.
        num_classes: Number of classes without the background.
        image_size: Height and width of the images after cropping, pixels.
        crop_fraction: For evaluation the short side is resized to image_size / crop_fraction and the center is cropped.
        index_folder: Folder in which the index of the records is kept. None to scan the shards at every start.
        normalization: Scale of the pixels.

    Returns:
        Training set and validation set.

    Raises:
        DataError: If a shard is missing or damaged.
    """
    train, validation = (
        RecordSource(
            index_records(find_shards(folder, prefix), index_folder and index_folder / f"{prefix}.index.npz"),
            _parse_imagenet,
            num_classes,
            image_size,
            crop_fraction,
            normalization,
        )
        for prefix in ("train", "validation")
    )
    return train, validation


def find_shards(folder: Path, prefix: str) -> list[Path]:
    """Find the shards `<prefix>-<number>-of-<count>` of a folder.

    Args:
        folder: The folder.
        prefix: Name of the split.

    Returns:
        The files in the order of their numbers.

    Raises:
        DataError: If there is none, one is missing, or there are sets of several counts.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise DataError(f"data.path {folder}: cannot be read ({error.strerror})") from None
    matches = [match for name in names if (match := re.fullmatch(rf"{prefix}-(\d{{5}})-of-(\d{{5}})", name))]
    if not matches:
        raise DataError(f"data.path {folder}: no file {prefix}-00000-of-...; expected ImageNet's TFRecord shards")
    counts = {match[2] for match in matches}
    if len(counts) > 1:
        raise DataError(f"data.path {folder}: {prefix} shards of {' and of '.join(sorted(counts))}; keep one set")
    (count,) = counts
    expected = [f"{prefix}-{number:05d}-of-{count}" for number in range(int(count))]
    missing = sorted(set(expected) - {match[0] for match in matches})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"data.path {folder}: {missing[0]}{more} missing; copy the whole set of {int(count)} shards")
    return [folder / name for name in expected]


def _parse_imagenet(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = tf.io.parse_single_example(record, features)
    return parsed["image/encoded"], parsed["image/class/label"] - 1
