"""ImageNet's classic TFRecord shards, read record by record: `train-00000-of-01024`, `validation-00000-of-00128`.

Sharding by file would tie the batches to the number of ranks. With the offset of every record known, records
are as good as files: one order for all ranks, and a run resumes at any step at once.
"""

import re
from collections.abc import Callable
from pathlib import Path

from resrep_dist.data.encoded import EncodedSource
from resrep_dist.data.record_index import RecordIndex, RecordReader, index_records
from resrep_dist.errors import DataError

import tensorflow as tf

Parse = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class RecordSource(EncodedSource):
    """Images in TFRecord files.

    Args:
        parse: one record, string [] -> encoded image, string [], and label, int64 [].
    """

    def __init__(
        self, index: RecordIndex, parse: Parse, num_classes: int, image_size: int, crop_fraction: float
    ) -> None:
        super().__init__(num_classes, image_size, crop_fraction)
        self._index, self._reader, self._parse = index, RecordReader(index), parse

    def __len__(self) -> int:
        return len(self._index)

    def describe(self, index: int) -> str:
        return self._index.describe(index)

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Stateless: what a record holds depends on its index alone. A stateful function would make
        # TensorFlow's op determinism run the whole pipeline in one thread, without prefetching.
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
    folder: Path, num_classes: int, image_size: int, crop_fraction: float, index_folder: Path | None
) -> tuple[RecordSource, RecordSource]:
    """Training and validation set of ImageNet's shards in one folder.

    Their labels start at 1, as 0 was the background.
    """
    train, validation = (
        RecordSource(
            index_records(find_shards(folder, prefix), index_folder and index_folder / f"{prefix}.index.npz"),
            _parse_imagenet,
            num_classes,
            image_size,
            crop_fraction,
        )
        for prefix in ("train", "validation")
    )
    return train, validation


def find_shards(folder: Path, prefix: str) -> list[Path]:
    """All shards `prefix-<number>-of-<count>` of a folder, in order.

    Raises:
        DataError: when there is none, one is missing, or there are several sets.
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
