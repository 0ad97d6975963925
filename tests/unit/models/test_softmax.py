"""The end of a model: a softmax in every form, a sigmoid, and what is neither."""

from resrep_dist.config import ModelConfig, TrainingConfig
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.merging.certificate import logits
from resrep_dist.models import building
from resrep_dist.models.building import build_model
from resrep_dist.models.softmax import ends_in_sigmoid, ends_in_softmax, with_logits, without_softmax
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.losses import make_loss
from tests.networks import random_source, small_config

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)


def features():
    inputs = keras.Input([8, 8, 3])
    return inputs, layers.Conv2D(6, 3, activation="relu")(inputs)


def with_end(end):
    keras.utils.set_random_seed(1)
    inputs, x = features()
    return keras.Model(inputs, end(layers.GlobalAveragePooling2D()(x)))


def inner_softmax(x):
    inner = keras.Sequential([keras.Input([6]), layers.Dense(10), layers.Softmax()])
    return inner(x)


def one_pixel(x):
    x = layers.Conv2D(10, 1)(layers.Reshape([1, 1, 6])(x))
    return layers.Flatten()(layers.Softmax()(x))


SOFTMAX = {
    "layer": lambda x: layers.Softmax()(layers.Dense(10)(x)),
    "activation": lambda x: layers.Activation("softmax")(layers.Dense(10)(x)),
    "built_in": lambda x: layers.Dense(10, activation="softmax")(x),
    "tensorflow": lambda x: tf.nn.softmax(layers.Dense(10)(x)),
    "tensorflow_axis": lambda x: tf.nn.softmax(layers.Dense(10)(x), axis=-1),
    "keras_function": lambda x: keras.activations.softmax(layers.Dense(10)(x)),
    "tensorflow_built_in": lambda x: layers.Dense(10, activation=tf.nn.softmax)(x),
    "tensorflow_activation": lambda x: layers.Activation(tf.nn.softmax)(layers.Dense(10)(x)),
    "cast": lambda x: layers.Activation("linear", dtype="float32")(layers.Dense(10, activation="softmax")(x)),
    "tensorflow_cast": lambda x: tf.cast(layers.Dense(10, activation="softmax")(x), tf.float32),
    "dropout": lambda x: layers.Dropout(0.1)(layers.Dense(10, activation="softmax")(x)),
    "one_pixel": one_pixel,
    "inner_model": inner_softmax,
}
NEITHER = {
    "logits": lambda x: layers.Dense(10)(x),
    "other_axis": lambda x: layers.Reshape([10])(layers.Softmax(axis=1)(layers.Reshape([5, 2])(layers.Dense(10)(x)))),
    "gate": lambda x: layers.Dense(10)(layers.Multiply()([x, layers.Dense(6, "sigmoid")(x)])),
    "attention": lambda x: layers.Dense(10)(layers.Softmax()(x)),
}


@pytest.mark.parametrize("form", SOFTMAX)
def test_a_softmax_of_every_form_is_taken_off(monkeypatch, form):
    model = with_end(SOFTMAX[form])
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: model)
    built = build_model(ModelConfig("python:mine:build", 10, 8))
    received, expected = built.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0)
    assert not np.allclose(received.sum(-1), 1)
    np.testing.assert_allclose(tf.nn.softmax(received), expected, atol=1e-6)
    assert ends_in_softmax(model) and not ends_in_softmax(built)
    np.testing.assert_allclose(logits(model, IMAGES), received, atol=1e-6)


@pytest.mark.parametrize("form", NEITHER)
def test_what_is_not_at_the_end_of_the_classes_stays(form):
    model = with_end(NEITHER[form])
    assert not ends_in_softmax(model) and not ends_in_sigmoid(model)
    assert without_softmax(model) is model and with_logits(model) is model


def test_probabilities_of_an_unknown_layer_are_refused(monkeypatch):
    model = with_end(lambda x: layers.Lambda(lambda y: tf.exp(y) / tf.reduce_sum(tf.exp(y), -1, True))(x))
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: model)
    with pytest.raises(ModelError, match="its outputs are probabilities, made by lambda.*keras.layers.Softmax"):
        build_model(ModelConfig("python:mine:build", 6, 8))


OTHER_SIGMOIDS = {
    "lambda": lambda x: layers.Lambda(tf.sigmoid)(layers.Dense(10)(x)),
    "function": lambda x: layers.Dense(10, activation=lambda y: 1.0 / (1.0 + tf.exp(-y)))(x),
    "power": lambda x: tf.nn.sigmoid(layers.Dense(10)(x)) ** 2.0,
}


@pytest.mark.parametrize("form", OTHER_SIGMOIDS)
def test_a_sigmoid_that_is_not_known_as_one_is_refused_and_not_trained_as_logits(monkeypatch, form):
    model = with_end(OTHER_SIGMOIDS[form])
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: model)
    with pytest.raises(ModelError, match="its outputs lie between 0 and 1, as those of a sigmoid, made by"):
        build_model(ModelConfig("python:mine:build", 10, 8))


@pytest.mark.parametrize("end", [layers.ReLU(), layers.Activation("tanh"), layers.BatchNormalization()])
def test_other_layers_at_the_end_are_logits(monkeypatch, end):
    model = with_end(lambda x: end(layers.Dense(10)(x)))
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: model)
    assert build_model(ModelConfig("python:mine:build", 10, 8)).output_shape == (None, 10)


SIGMOID = {
    "built_in": lambda x: layers.Dense(10, activation="sigmoid")(x),
    "activation": lambda x: layers.Activation("sigmoid")(layers.Dense(10)(x)),
    "tensorflow": lambda x: tf.nn.sigmoid(layers.Dense(10)(x)),
}


@pytest.mark.parametrize("form", SIGMOID)
def test_a_sigmoid_stays_and_is_trained_by_the_loss_that_fits_it(monkeypatch, form):
    model = with_end(SIGMOID[form])
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: model)
    built = build_model(ModelConfig("python:mine:build", 10, 8))
    probabilities = built(IMAGES).numpy()
    np.testing.assert_allclose(probabilities, model(IMAGES), atol=1e-6)
    labels = np.arange(5)
    loss = make_loss(TrainingConfig(loss="binary_crossentropy"), built)
    one_hot = np.eye(10)[labels]
    expected = -(one_hot * np.log(probabilities) + (1 - one_hot) * np.log(1 - probabilities)).mean(-1)
    np.testing.assert_allclose(loss(tf.constant(labels), tf.constant(probabilities)), expected, rtol=1e-4)
    for name in ("sparse_categorical_crossentropy", "CategoricalCrossentropy"):
        with pytest.raises(ConfigError, match="ends in a sigmoid; set training.loss: binary_crossentropy"):
            make_loss(TrainingConfig(loss=name), built)


def test_metrics_of_a_sigmoid_are_of_its_own_probabilities():
    model, source = with_end(SIGMOID["built_in"]), random_source(20, 8)
    values = Evaluator(model, ["binary_crossentropy"]).evaluate(source, 7)
    probabilities = model.predict(source.images, verbose=0)
    expected = keras.losses.binary_crossentropy(np.eye(10)[source.labels], probabilities).numpy().mean()
    assert values["binary_crossentropy"] == pytest.approx(expected, rel=1e-4)
    assert values["top1"] == 100 * np.mean(probabilities.argmax(-1) == source.labels)


def test_the_advice_for_a_single_output_is_not_a_circle(monkeypatch):
    models = {1: with_end(lambda x: layers.Dense(1, activation="sigmoid")(x)), 2: with_end(layers.Dense(2))}
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: models[1])
    with pytest.raises(ModelError, match=r"keras.layers.Dense\(2\) and set model.num_classes: 2"):
        build_model(ModelConfig("python:mine:build", 2, 8))
    with pytest.raises(ConfigError, match=r"keras.layers.Dense\(2\) and set model.num_classes: 2"):
        small_config(model={"num_classes": 1})
    monkeypatch.setattr(building, "_call_users_function", lambda name, config: models[2])
    assert build_model(ModelConfig("python:mine:build", 2, 8)).output_shape == (None, 2)


def test_of_several_outputs_each_softmax_is_taken_off_unless_another_layer_takes_it():
    inputs = keras.Input([8])
    probabilities, gate = layers.Dense(3, activation="softmax")(inputs), layers.Dense(4, activation="sigmoid")(inputs)
    outputs = [layers.Softmax()(layers.Dense(5)(inputs)), probabilities, layers.Multiply()([gate, inputs[:, :4]]), gate]
    model = keras.Model(inputs, outputs)
    values = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    logits = with_logits(model)(values)
    for index, (before, after) in enumerate(zip(model(values), logits, strict=True)):
        if index < 2:
            np.testing.assert_allclose(tf.nn.softmax(after), before, atol=1e-6)
            assert not np.allclose(after, before)
        else:
            np.testing.assert_allclose(after, before, atol=1e-6)
