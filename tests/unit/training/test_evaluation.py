from resrep_dist.data.source import Source
from resrep_dist.distributed.watchdog import Watchdog
from resrep_dist.training.evaluation import Evaluator

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


class OneOf:
    """A cluster's view of one rank whose collectives are answered from all ranks' own sums."""

    def __init__(self, rank, size, answers):
        self.rank, self.size, self.num_cores, self._answers = rank, size, 1, answers
        self.watchdog = Watchdog(rank == 0, None)

    def sum(self, tensors, name):
        self._answers.setdefault(name, []).append([tensor.numpy() for tensor in tensors])
        return [tf.constant(sum(parts)) for parts in zip(*self._answers[name], strict=True)]


def model_of(num_classes):
    return keras.Sequential([keras.layers.Flatten(input_shape=[1, num_classes, 1])])


def source_of(num_classes, num_samples=53):
    random = np.random.default_rng(0)
    # Few distinct scores, so that many are equal.
    scores = random.integers(0, 4, [num_samples, 1, num_classes, 1]).astype(np.float32)
    return Source(scores, random.integers(0, num_classes, num_samples), num_classes)


def test_top1_and_top5_by_a_stable_sort_and_a_keras_metric():
    source = source_of(12)
    order = np.argsort(-source.images[:, 0, :, 0], axis=-1, kind="stable")
    place = np.array([row.tolist().index(label) for row, label in zip(order, source.labels, strict=True)])
    values = Evaluator(model_of(12), ["sparse_categorical_crossentropy"]).evaluate(source, 10)
    assert values["top1"] == 100 * np.mean(place < 1)
    assert values["top5"] == 100 * np.mean(place < 5) > values["top1"]
    scores = source.images[:, 0, :, 0].astype(np.float64)
    entropy = np.log(np.exp(scores).sum(-1)) - scores[range(53), source.labels]
    assert values["sparse_categorical_crossentropy"] == pytest.approx(entropy.mean(), rel=1e-5)


@pytest.mark.parametrize("num_samples, num_ranks", [(53, 3), (4, 5)])
def test_parts_that_do_not_divide_and_empty_ones_add_up_exactly(num_samples, num_ranks):
    source, model = source_of(12, num_samples), model_of(12)
    alone = Evaluator(model, ["AUC"]).evaluate(source, 10)
    answers = {}
    for rank in range(num_ranks):
        shared = Evaluator(model, ["AUC"]).evaluate(source, 10, OneOf(rank, num_ranks, answers))
    assert shared == pytest.approx(alone, rel=1e-6)
    assert (shared["top1"], shared["top5"]) == (alone["top1"], alone["top5"])


def test_five_classes_have_no_top5():
    assert set(Evaluator(model_of(5)).evaluate(source_of(5), 10)) == {"top1"}
