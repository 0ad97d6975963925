from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ModelError
from resrep_dist.layers.sync_batch_norm import SyncBatchNormalization, with_plain_batch_norm, with_sync_batch_norm
from tests.networks import random_source, randomise, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


@pytest.mark.parametrize("floatx, atol", [("float32", 1e-5), ("float64", 1e-12)])
def test_on_one_rank_it_is_keras_own_layer(floatx, atol):
    keras.backend.set_floatx(floatx)
    try:
        random = np.random.default_rng(0)
        # A large mean: sums of squares about zero would lose the variance in float32.
        images = tf.constant(random.normal(300.0, 2.0, size=[20, 5, 5, 3]), floatx)
        factor = tf.constant(random.normal(size=[20, 5, 5, 3]), floatx)
        found = []
        for kind in (keras.layers.BatchNormalization, SyncBatchNormalization):
            layer = kind(momentum=0.5)
            layer.build(images.shape)
            layer.set_weights(
                list(np.array([[0.5, 1.0, 2.0], [1.0, 0.0, -1.0], [299.0, 300.0, 301.0], [3.0, 4.0, 5.0]]))
            )
            layer.cluster = Cluster()
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = layer(images, training=True)
                loss = tf.reduce_sum(factor * outputs**2)
            found.append([outputs, *tape.gradient(loss, [images, *layer.trainable_variables]), *layer.weights])
        for received, expected in zip(*found, strict=True):
            np.testing.assert_allclose(received.numpy(), expected.numpy(), rtol=10 * atol, atol=30 * atol)
    finally:
        keras.backend.set_floatx("float32")


def test_it_turns_back_into_stock_layers_with_equal_outputs():
    plain = small_network()
    randomise(plain)
    model = with_sync_batch_norm(plain, Cluster())
    back = with_plain_batch_norm(model)
    images = random_source(20).images
    assert with_plain_batch_norm(plain) is plain
    assert not any(isinstance(layer, SyncBatchNormalization) for layer in back.layers)
    for network in (model, back):
        np.testing.assert_array_equal(network(images), plain(images))


class ScaledBatchNormalization(keras.layers.BatchNormalization):
    """A user's own batch norm, which computes something else."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


def network_of(*layers):
    return keras.Sequential([keras.Input([8, 8, 3]), *layers])


def test_a_batch_norm_that_computes_something_else_is_refused_by_name_and_not_replaced():
    for kind in (ScaledBatchNormalization, tf.compat.v1.keras.layers.BatchNormalization):
        model = network_of(keras.layers.BatchNormalization(), kind(name="own"))
        with pytest.raises(
            ModelError,
            match=rf"^layer own: .*{kind.__module__}.{kind.__name__}, expected keras.layers.BatchNormalization",
        ):
            with_sync_batch_norm(model, Cluster())


def test_stock_batch_norm_is_replaced_also_where_keras_is_told_to_synchronize_it():
    model = network_of(keras.layers.BatchNormalization(), keras.layers.BatchNormalization(synchronized=True))
    replaced = with_sync_batch_norm(with_sync_batch_norm(model, Cluster()), Cluster())
    assert [type(layer) for layer in replaced.layers[1:]] == [SyncBatchNormalization] * 2
    images = tf.random.normal([4, 8, 8, 3])
    np.testing.assert_allclose(replaced(images, training=True), model(images, training=True), atol=1e-5)
