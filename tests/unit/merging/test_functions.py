"""Functions in users' models: calls with arguments, TensorFlow's functions, activations of their own, random ones."""

import resrep_dist
from resrep_dist.errors import ModelError
from resrep_dist.graph import flatten, trace
from resrep_dist.models.files import load_model
from resrep_dist.pruning.deadness import dead_channels
from resrep_dist.shrinking.surgery import removable, without_channels
from tests.networks import classifier_with, with_dead_channels

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype(np.float32)


def merged(model):
    graph = trace(model)
    trained = with_dead_channels(model, graph)
    return graph, *resrep_dist.merge(trained, graph, IMAGES)


CALLS = {
    "reduce_mean": lambda x: tf.reduce_mean(x, -1, keepdims=True),
    "reduce_max": lambda x: tf.reduce_max(x, axis=[1, 2], keepdims=True),
    "split": lambda x: layers.Concatenate()(tf.split(x, 2, axis=-1)),
    "split_one": lambda x: tf.split(x, [2, 6], axis=-1)[1],
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]),
    "resize": lambda x: tf.image.resize(x, [5, 7], method="nearest"),
    "transpose": lambda x: tf.transpose(x, perm=[0, 2, 1, 3]),
    "slice": lambda x: x[:, 1:, :, ::2],
    "einsum": lambda x: tf.einsum("bhwc,cd->bhwd", x, np.eye(8, dtype=np.float32)),
    "stack": lambda x: tf.reduce_sum(tf.stack([x, 2.0 * x], axis=-1), -1),
    "gather": lambda x: tf.gather(x, [0, 2, 4], axis=-1),
    "concat_of_rows": lambda x: tf.concat([x, x], 1),
    "array_first": lambda x: np.arange(1.0, 9.0, dtype=np.float32) / (x + 2.0),
    "power": lambda x: x**2,
    "clip": lambda x: tf.clip_by_value(x, -0.5, 0.5),
    "frozen_call": lambda x: layers.BatchNormalization(name="frozen")(x, training=False),
    "dropout_off": lambda x: layers.Dropout(0.5)(x, training=False),
}


# Functions that are as good as a layer: what reaches them is pruned.
FUNCTIONS = {
    "reversed": lambda x: 1.0 - x,
    "reversed_vector": lambda x: np.arange(8.0, dtype=np.float32) - x,
    "negative": lambda x: -x,
    "concat": lambda x: tf.concat([x, 2.0 * x], -1),
    "concat_by_name": lambda x: tf.concat(values=[x, 2.0 * x], axis=3, name="both"),
    "add_n": lambda x: tf.add_n([x, x, 2.0 * x]),
    "maximum": lambda x: tf.maximum(x, 1.0 - x),
    "cast": lambda x: tf.cast(x, tf.float32),
    "mean": lambda x: tf.reduce_mean(x, axis=[1, 2]),
    "mean_kept": lambda x: tf.reduce_mean(x, (-3, -2), keepdims=True),
    "max": lambda x: tf.reduce_max(x, [2, 1]),
    "gelu": lambda x: keras.activations.gelu(x - 0.5),
    "resize": lambda x: tf.image.resize(x, [5, 7]),
    "resize_nearest": lambda x: tf.image.resize(x, (6, 6), method="nearest"),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_that_are_as_good_as_a_layer_become_one(tmp_path, function):
    model = classifier_with(FUNCTIONS[function])
    graph, slim, certificate = merged(model)
    assert [group.name for group in graph.groups] == ["conv0", "conv1"]
    assert certificate.max_relative_difference < 1e-5
    np.testing.assert_allclose(flatten(model)(IMAGES), model(IMAGES), atol=1e-5)
    # So its file is read too.
    resrep_dist.save_model(slim, tmp_path / "slim.h5")
    np.testing.assert_allclose(load_model(tmp_path / "slim.h5")(IMAGES), slim(IMAGES), atol=1e-5)


OF_THEIR_OWN = {
    "lambda": lambda x: tf.nn.leaky_relu(x, 0.1),
    "function": tf.nn.log_softmax,
    "mixing": lambda x: x / (1.0 + tf.reduce_max(x, -1, keepdims=True)),
    "constant": lambda x: tf.abs(x) + 0.5,
}


@pytest.mark.parametrize("built_in", [True, False])
@pytest.mark.parametrize("function", OF_THEIR_OWN)
def test_activations_that_are_functions_of_the_user_are_carried(function, built_in):
    def between(x):
        x = layers.Conv2D(8, 1, activation=OF_THEIR_OWN[function] if built_in else None, name="own")(x)
        return x if built_in else layers.Activation(OF_THEIR_OWN[function])(x)

    graph, _, certificate = merged(classifier_with(between))
    mixes = function in ("function", "mixing")
    assert [group.name for group in graph.groups] == ["conv0", "conv1"] + ["own"] * (not mixes)
    assert certificate.max_relative_difference < 1e-5


def gate(x):
    squeezed = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(x))
    squeezed = layers.Dense(16, activation="softmax", name="mixing")(squeezed)
    return layers.Multiply()([x, layers.Reshape((1, 1, 16))(squeezed)])


def wide(x):
    return layers.Conv2D(16, 1, activation="relu", name="wide")(x)


# A softmax in a layer, and the convolutions whose channels it mixes.
SOFTMAX = {
    "convolution": (layers.Conv2D(16, 1, activation="softmax", name="mixing"), ["mixing"]),
    "separable": (layers.SeparableConv2D(16, 3, padding="same", activation="softmax", name="mixing"), ["mixing"]),
    "depthwise": (lambda x: layers.DepthwiseConv2D(3, activation="softmax", name="mixing")(wide(x)), ["wide"]),
    "gate": (lambda x: gate(wide(x)), ["wide"]),
}


@pytest.mark.parametrize("kind", SOFTMAX)
def test_a_softmax_in_a_layer_inside_of_the_network_keeps_the_channels_that_it_mixes(kind):
    between, mixed = SOFTMAX[kind]
    graph, _, certificate = merged(classifier_with(between))
    assert graph.refused == dict.fromkeys(mixed, "the activation mixing_activation mixes its channels")
    assert [group.name for group in graph.groups] == ["conv0", "conv1"]
    assert certificate.max_relative_difference < 1e-5


def test_a_constant_does_not_pass_a_softmax_in_a_layer_to_the_batch_norm_behind_it():
    def between(x):
        x = layers.Conv2D(8, 1, use_bias=False, activation="softmax", name="mixing")(keras.activations.sigmoid(x))
        return layers.BatchNormalization()(x)

    model = classifier_with(between)
    graph = trace(model)
    trained = with_dead_channels(model, graph)
    dead = dead_channels(trained, graph)
    going = removable(trained, graph, dead)
    # Those of conv1 have nowhere to go before the merge, which gives a bias to the layer that takes them.
    assert dead[1].any() and not going[1].any()
    np.testing.assert_array_equal(going[0], dead[0])
    np.testing.assert_allclose(without_channels(trained, graph, going)(IMAGES), trained(IMAGES), atol=1e-4)


@pytest.mark.parametrize("call", CALLS)
def test_arguments_of_calls_are_carried_through_the_merge(call):
    graph, slim, certificate = merged(classifier_with(CALLS[call]))
    assert "conv0" in [group.name for group in graph.groups]
    assert certificate.max_relative_difference < 1e-5
    assert slim.get_layer("conv0").filters < 8


RANDOM = {
    "a Dropout that is called with training=True": lambda x: layers.Dropout(0.5)(x, training=True),
    "tf.nn.dropout draws in inference too": lambda x: tf.nn.dropout(x, rate=0.5),
    "tf.random.normal draws in inference too": lambda x: x + tf.random.normal(tf.shape(x)),
    "a Lambda layer in it draws random numbers": lambda x: layers.Lambda(lambda y: y + tf.random.normal([8]))(x),
}


@pytest.mark.parametrize("reason", RANDOM)
def test_outputs_that_are_random_in_inference_are_refused_by_trace(reason):
    with pytest.raises(ModelError, match=reason):
        trace(classifier_with(RANDOM[reason]))
