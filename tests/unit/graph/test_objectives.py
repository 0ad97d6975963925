"""A copy of a model is trained by the same objective, or the difference is said."""

import logging

import resrep_dist
from resrep_dist.errors import ModelError

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


def network(kind=keras.Model):
    x = inputs = keras.Input([8, 8, 3])
    for width in (4, 6):
        x = layers.ReLU()(layers.Conv2D(width, 3)(x))
    return kind(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)), name="net")


def with_compactors(model):
    return resrep_dist.insert_compactors(model, resrep_dist.trace(model))


def with_symbolic_loss():
    model = network()
    model.add_loss(tf.reduce_mean(tf.square(model.layers[1].output)))
    return model


def with_callable_loss():
    model = network()
    model.add_loss(lambda: 2.0 * tf.reduce_sum(tf.square(model.layers[1].kernel)))
    return model


def with_loss_inside():
    return keras.Sequential([keras.Input([8, 8, 3]), with_symbolic_loss()])


@pytest.mark.parametrize("make", [with_symbolic_loss, with_callable_loss, with_loss_inside])
def test_a_loss_that_is_added_to_a_model_is_refused_with_where_to_put_it(make):
    with pytest.raises(
        ModelError, match=r"model\.add_loss.*expected none; call self\.add_loss in the `call` of a layer"
    ):
        resrep_dist.trace(make())


def test_a_loss_of_a_layer_is_kept(caplog):
    class Penalty(layers.Layer):
        def call(self, inputs):
            self.add_loss(tf.reduce_mean(tf.square(inputs)))
            return inputs

    x = inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3)(layers.ReLU()(Penalty()(layers.Conv2D(4, 3)(x))))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    pruned = with_compactors(model)
    images = np.ones([2, 8, 8, 3], np.float32)
    losses = [[float(loss) for loss in (each(images), each.losses)[1]] for each in (model, pruned)]
    assert losses[0] == pytest.approx(losses[1]) and losses[0][0] > 0
    assert not caplog.records


class OwnStep(keras.Model):
    def train_step(self, data):
        raise AssertionError("never called")


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        raise AssertionError("never called")


def with_metric():
    model = network()
    model.add_metric(tf.reduce_mean(model.layers[1].output), "size")
    return model


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: network(OwnStep), "train_step"), (lambda: network(OwnLoss), "compute_loss"), (with_metric, "add_metric")],
)
def test_what_else_a_copy_does_not_have_is_said_once(make, name, caplog):
    with caplog.at_level(logging.WARNING):
        with_compactors(make())
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"Model net: its own {name} is not used"
    ]
