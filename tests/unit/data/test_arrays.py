"""What a program gives as data."""

import resrep_dist
from resrep_dist.data.arrays import open_sets
from resrep_dist.data.order import evaluation_batches
from resrep_dist.data.source import Source
from resrep_dist.errors import DataError
from tests.networks import random_source, small_network

import numpy as np
import pytest
import tensorflow as tf

IMAGES = np.zeros([3, 16, 16, 3], np.float32)


@pytest.mark.parametrize(
    "labels, kind",
    [
        (np.array(["a", "b", "a"]), "<U1"),
        (np.array([b"cat", b"dog", b"cat"]), "S3"),
        (np.array(["a", "b", None], object), "object"),
        (np.array([0, 1, 1], object), "object"),
        (np.array([["a"], ["b"], ["a"]]), "<U1"),
        (np.full([3, 16, 16], "a"), "<U1"),
        (np.array([0, 1, 1], "datetime64[D]"), "datetime64.D."),
    ],
)
def test_labels_that_are_no_numbers_are_refused_with_the_line_that_makes_them_some(labels, kind):
    expected = rf"labels of type \W?{kind}, expected whole numbers, .* np.unique\(labels, return_inverse=True\)\[1\]"
    with pytest.raises(DataError, match=expected):
        Source(IMAGES, labels, 2)
    with pytest.raises(DataError, match=expected):
        open_sets([(IMAGES, labels), (IMAGES, np.array([0, 1, 1]))], (None, 2))
    if labels.ndim == 1 and labels.dtype.kind in "US":
        numbers = np.unique(labels, return_inverse=True)[1]
        assert open_sets([(IMAGES, numbers)], (None, 2))[0].labels.tolist() == [0, 1, 0]


def test_one_call_refuses_text_labels_of_arrays_and_of_a_dataset():
    data, names = random_source(8), np.array([*"abcdefghij"])
    texts = names[data.labels]
    for train in ((data.images, texts), tf.data.Dataset.from_tensor_slices((data.images, texts))):
        with pytest.raises(DataError, match="labels of type .*, expected whole numbers"):
            resrep_dist.prune(small_network(), train, data, console=None)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.float64])
def test_numbers_of_any_type_are_labels(dtype):
    _, labels = next(iter(evaluation_batches(Source(IMAGES, np.array([0, 1, 1], dtype), 2), 3, 0, 1)))
    assert labels.numpy().tolist() == [0, 1, 1] and labels.dtype == tf.int64
