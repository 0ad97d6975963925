"""The division of gradients into collectives, and tensors as one vector."""

from resrep_dist.distributed.buckets import plan_buckets, sum_in_buckets
from resrep_dist.distributed.flat import pack, unpack

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

# Convolutions of a ResNet-50 by stage, roughly; bytes.
RESNET50 = [37_632, *[300_000] * 10, *[1_200_000] * 12, *[4_400_000] * 12, *[6_000_000] * 4, 8_192_000]


def test_a_resnet50_has_buckets_of_25_mb_and_a_small_last_one():
    buckets = plan_buckets(RESNET50)
    sizes = [sum(RESNET50[index] for index in bucket) / 1e6 for bucket in buckets]
    assert 4 <= len(buckets) <= 6 and sum(sizes) == pytest.approx(sum(RESNET50) / 1e6)
    assert all(15 < size < 30 for size in sizes[:-1]) and sizes[-1] < 5, sizes


@pytest.mark.parametrize("total, expected", [(1e6, 4), (60e6, 4), (90e6, 5), (528e6, 6)])
def test_there_are_4_to_6_whatever_the_size(total, expected):
    assert len(plan_buckets([int(total / 200)] * 200)) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**7), max_size=60))
def test_each_tensor_is_in_one_bucket_in_backward_order(num_bytes):
    buckets = plan_buckets(num_bytes)
    assert [index for bucket in buckets for index in bucket] == list(reversed(range(len(num_bytes))))
    assert len(buckets) <= 6


class Cluster:
    size = 2

    def sum(self, tensors, name):
        return [tensor * 2 for tensor in tensors]


def test_sums_come_back_in_the_order_of_the_tensors():
    tensors = [tf.fill([size], float(size)) for size in (3, 500, 2, 40, 7, 900)]
    sums = sum_in_buckets(Cluster(), tensors, "test")
    assert [value.numpy().tolist() for value in sums] == [[2.0 * size] * size for size in (3, 500, 2, 40, 7, 900)]
    assert sum_in_buckets(Cluster(), [], "test") == []


def test_a_vector_is_divided_into_what_it_was_made_of():
    tensors = [np.arange(6.0).reshape(2, 3), np.float64(7.0), np.zeros([0, 4]), np.arange(2.0)]
    vector = pack(tensors)
    assert vector.shape == [9]
    for received, expected in zip(unpack(vector, [tensor.shape for tensor in tensors]), tensors, strict=True):
        np.testing.assert_array_equal(received, expected)
    assert pack([], "float64").dtype == tf.float64 and unpack(pack([]), []) == []
