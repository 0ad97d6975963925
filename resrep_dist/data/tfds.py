"""Image classification sets of TensorFlow Datasets that are prepared on disk; nothing is downloaded."""

import re
from pathlib import Path
from typing import Any

from resrep_dist.data.normalization import IMAGENET, Normalization
from resrep_dist.data.record_index import index_records
from resrep_dist.data.tfrecord import Parse, RecordSource
from resrep_dist.errors import DataError, one_line

import tensorflow as tf


def prepared_set(
    name: str,
    data_dir: Path,
    image_size: int,
    crop_fraction: float,
    index_folder: Path | None,
    normalization: Normalization = IMAGENET,
) -> tuple[RecordSource, RecordSource]:
    """Open a set with the features `image` and `label`.

    Args:
        name: Name of the set, as in `mnist:3.0.1`.
        data_dir: Folder with the prepared sets.
        image_size: Height and width of the images after cropping, pixels.
        crop_fraction: For evaluation the short side is resized to image_size / crop_fraction and the center is cropped.
        index_folder: Folder in which the index of the records is kept. None to scan the files at every start.
        normalization: Scale of the pixels.

    Returns:
        The split `train`, and the split `validation`, or `test` if there is none.

    Raises:
        DataError: If tensorflow-datasets is not installed, or the set is not prepared, has other features or splits, or
            is not stored as TFRecord.
    """
    builder = _builder(name, data_dir)
    features, splits = builder.info.features, builder.info.splits
    if "image" not in features or "label" not in features:
        raise DataError(f"data.name {name}: its features are {', '.join(features)}; expected `image` and `label`")
    validation = "validation" if "validation" in splits else "test"
    for split in ("train", validation):
        if split not in splits:
            raise DataError(f"data.name {name}: it has no split {split}, only {', '.join(splits)}")
    if builder.info.file_format is None or builder.info.file_format.value != "tfrecord":
        raise DataError(f"data.name {name}: it is stored as {builder.info.file_format}; prepare it as tfrecord")
    train, evaluation = (
        RecordSource(
            index_records(
                [Path(path) for path in splits[split].filepaths],
                index_folder and index_folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}-{split}.index.npz",
            ),
            _parser(features),
            features["label"].num_classes,
            image_size,
            crop_fraction,
            normalization,
        )
        for split in ("train", validation)
    )
    return train, evaluation


def _builder(name: str, data_dir: Path) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"data.source tfds: tensorflow-datasets cannot be imported ({error}); "
            "install it by `.venv/bin/uv pip install --python .venv/bin/python -e '.[tfds]'` in the repository's root"
        ) from None
    try:
        builder = tfds.builder(name, data_dir=str(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError, OSError, AssertionError) as error:
        raise DataError(f"data.name {name}: not found in data.path {data_dir} ({one_line(error)})") from None
    if not builder.info.splits:
        raise DataError(
            f"data.path {data_dir}: {name} is not prepared there; `tfds build {name} --data_dir {data_dir}` does that"
        )
    return builder


def _parser(features: Any) -> Parse:
    import tensorflow_datasets as tfds

    # Only the two features are parsed, and the image stays encoded, since only its crop is decoded later.
    wanted = type(features)({"image": features["image"], "label": features["label"]})

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = wanted.deserialize_example(record, decoders={"image": tfds.decode.SkipDecoding()})
        return example["image"], tf.cast(example["label"], tf.int64)

    return parse
