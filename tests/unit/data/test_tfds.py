"""A set that TensorFlow Datasets itself prepared, read record by record."""

import importlib.util

from resrep_dist.data.order import evaluation_batches
from resrep_dist.errors import DataError
from tests.images import LEVEL_STEP, label_of, numbers_of
from tests.networks import small_config, sources_of

import numpy as np
import pytest

needs_tfds = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None,
    reason="tensorflow-datasets is not installed; the extra `tfds` brings it",
)


def load(data_dir, name="gray"):
    data = {"source": "tfds", "path": str(data_dir), "name": name}
    return sources_of(small_config(data=data, model={"image_size": 16}))


def prepare(data_dir, encoding, name="gray", label="label"):
    import tensorflow_datasets as tfds

    def samples(count):
        for number in range(count):
            image = np.full((20, 24, 3), LEVEL_STEP * number, np.uint8)
            yield number, {"image": image, label: label_of(number), "extra": number}

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format=encoding),
            label: tfds.features.ClassLabel(num_classes=3),
            "extra": tfds.features.Scalar(np.int64),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=data_dir,
        split_datasets={"train": list(samples(12)), "test": list(samples(5))},
        features=features,
    )


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_datasets") is not None, reason="tensorflow-datasets is here")
def test_without_the_package_the_command_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot be imported .*-e '.\[tfds\]'`"):
        load(tmp_path)


@needs_tfds
@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_a_prepared_set_is_read_whole_with_its_labels(tmp_path, encoding):
    prepare(tmp_path, encoding)
    train, validation = load(tmp_path)
    assert (len(train), len(validation), train.num_classes) == (12, 5, 3)
    for source in (train, validation):
        batches = list(evaluation_batches(source, 5, 0, 1))
        numbers = numbers_of(np.concatenate([images for images, _ in batches]))
        assert sorted(numbers) == list(range(len(source)))
        labels = np.concatenate([labels for _, labels in batches])
        np.testing.assert_array_equal(labels, [label_of(number) for number in numbers])


@needs_tfds
def test_sets_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing_of_the_kind: not found in"):
        load(tmp_path, "nothing_of_the_kind")
    with pytest.raises(DataError, match="mnist is not prepared there; `tfds build mnist --data_dir"):
        load(tmp_path, "mnist")
    prepare(tmp_path, "png", name="unlabeled", label="objects")
    with pytest.raises(DataError, match="its features are .*; expected `image` and `label`"):
        load(tmp_path, "unlabeled")
