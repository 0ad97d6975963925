"""More than classifiers of images: signals, volumes, a U-Net whose output is a map, two inputs and two heads."""

import resrep_dist
from resrep_dist.graph import trace
from resrep_dist.merging.keras3 import compare_in_keras3
from resrep_dist.models.files import load_model
from resrep_dist.shrinking.early_merge import merged
from resrep_dist.shrinking.surgery import without_channels
from tests.networks import randomise, with_dead_channels
from tests.other_networks import finer_volumes, mobile_signals, signals, two_headed, unet, volumes

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


MODELS = {
    "signals": (signals, ["a", "b", "c"]),
    "volumes": (volumes, ["a", "b"]),
    "unet": (unet, ["down0", "down1", "bottom", "up1", "wide1", "up0", "wide0", "finer"]),
    "mobile_signals": (mobile_signals, ["a", "pointwise", "separable", "up"]),
    "finer_volumes": (finer_volumes, ["a", "up"]),
    "two_headed": (two_headed, ["stem", "trunk", "of_boxes"]),
}


def built(name):
    keras.utils.set_random_seed(0)
    model = MODELS[name][0]()
    randomise(model)
    graph = trace(model)
    random = np.random.default_rng(0)
    images = [random.normal(size=(16, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]
    return model, graph, images if len(images) > 1 else images[0]


def assert_equal_outputs(model, other, images, atol):
    received, expected = (tf.nest.flatten(each(images)) for each in (model, other))
    for one, another in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, another, atol=atol)


@pytest.mark.parametrize("name", MODELS)
def test_half_of_all_channels_go_and_the_outputs_stay(name):
    model, graph, images = built(name)
    assert [group.name for group in graph.groups] == MODELS[name][1]
    trained = with_dead_channels(model, graph)
    slim, certificate = resrep_dist.merge(trained, graph, images)
    assert certificate.max_relative_difference < 1e-5
    assert_equal_outputs(slim, trained, images, 1e-4)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert sum(kept) < sum(graph.widths)
    of_slim = trace(slim)
    assert of_slim.macs.total(of_slim.widths) == graph.macs.total(kept)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_training_shrinks_and_is_merged(name):
    model, graph, images = built(name)
    trained = with_dead_channels(model, graph)
    dead = [trained.get_layer(group.layers[0].compactor).mask.numpy() == 0 for group in graph.groups]
    narrow = without_channels(trained, graph, dead)
    assert_equal_outputs(narrow, trained, images, 1e-4)
    assert_equal_outputs(merged(narrow, graph), trained, images, 1e-3)


def test_the_multiply_adds_of_all_heads_count():
    _, graph, _ = built("two_headed")
    pixels = 8 * 8
    trunk = pixels * 9 * (3 * 8 + 8 * 12)
    classes, boxes = (12 + 4) * 5, pixels * (9 * 12 * 10 + 10 * 4)
    assert graph.macs.total(graph.widths) == trunk + classes + boxes
    # One channel of the trunk feeds both heads.
    assert graph.macs.per_channel(graph.widths)[1] == pixels * 9 * (8 + 10) + 5


# Keras 3 starts anew for each of them.
@pytest.mark.parametrize(
    "name",
    [
        "signals",
        "volumes",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("mobile_signals", "finer_volumes", "unet")),
    ],
)
def test_its_file_is_read_here_and_by_keras_3(tmp_path, name):
    model, _, images = built(name)
    resrep_dist.save_model(model, tmp_path / "model.h5")
    np.testing.assert_allclose(load_model(tmp_path / "model.h5")(images), model(images), atol=1e-5)
    assert compare_in_keras3(model, tmp_path / "model.h5", images).max_relative_difference < 1e-5


def test_a_constant_that_a_causal_convolution_pads_with_zeros_is_refused():
    inputs = keras.Input([32, 2])
    x = layers.Activation("sigmoid")(layers.Conv1D(8, 3, name="a")(inputs))
    x = layers.Conv1D(6, 3, padding="causal", name="b")(x)
    graph = trace(keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling1D()(x))))
    assert graph.refused == {"a": "a dead channel would be a constant, which b cannot hold in its bias"}
    assert [group.name for group in graph.groups] == ["b"]


def test_convolutions_of_several_groups_on_signals_stay_with_the_reason():
    inputs = keras.Input([32, 2])
    x = layers.Conv1D(8, 3, groups=2, name="grouped")(layers.Conv1D(8, 3, name="before")(inputs))
    graph = trace(keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling1D()(x))))
    assert graph.refused["grouped"] == "it is a Conv1D of another kind"
    assert graph.refused["before"] == "its channels reach grouped, a Conv1D"
