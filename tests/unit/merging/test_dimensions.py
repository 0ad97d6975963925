"""More than classifiers of images: signals, volumes, and a U-Net whose output is a map."""

import resrep_dist
from resrep_dist.graph import trace
from resrep_dist.merging.keras3 import compare_in_keras3
from resrep_dist.models.files import load_model
from resrep_dist.shrinking.refolding import refolded
from resrep_dist.shrinking.surgery import without_channels
from tests.networks import randomise, with_dead_channels

import numpy as np
import pytest
from tensorflow import keras

layers = keras.layers


def signals():
    x = inputs = keras.Input([32, 2])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(8, 5, padding="causal", name="a")(x)))
    x = layers.SpatialDropout1D(0.1)(layers.MaxPooling1D(2)(layers.ZeroPadding1D(1)(x)))
    x = layers.Conv1D(12, 3, padding="same", dilation_rate=2, activation="relu", name="b")(x)
    x = layers.AveragePooling1D(2)(layers.UpSampling1D(2)(layers.Cropping1D(1)(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(6, 3, 2, use_bias=False, name="c")(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def volumes():
    x = inputs = keras.Input([8, 8, 8, 1])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv3D(6, 3, padding="same", name="a")(x)))
    x = layers.SpatialDropout3D(0.1)(layers.MaxPooling3D(2)(layers.ZeroPadding3D(1)(x)))
    x = layers.Conv3D(8, 3, activation="relu", name="b")(layers.Cropping3D(1)(layers.UpSampling3D(2)(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.AveragePooling3D(2)(x))))


def unet():
    x = inputs = keras.Input([16, 16, 3])
    skips = []
    for depth, width in enumerate((6, 8)):
        x = layers.Conv2D(width, 3, padding="same", name=f"down{depth}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        skips.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="bottom")(x)
    for depth, width in ((1, 8), (0, 6)):
        x = layers.Conv2DTranspose(width, 3, 2, "same", name=f"up{depth}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x) if depth else x)
        x = layers.Concatenate()([x, skips[depth]])
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"wide{depth}")(x)
    x = layers.Conv2DTranspose(4, 2, 2, activation="relu", name="finer")(x)
    return keras.Model(inputs, layers.Conv2D(5, 1, name="map")(x))


MODELS = {
    "signals": (signals, ["a", "b", "c"]),
    "volumes": (volumes, ["a", "b"]),
    "unet": (unet, ["down0", "down1", "bottom", "up1", "wide1", "up0", "wide0", "finer"]),
}


def built(name):
    keras.utils.set_random_seed(0)
    model = MODELS[name][0]()
    randomise(model)
    graph = trace(model)
    images = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype(np.float32)
    return model, graph, images


@pytest.mark.parametrize("name", MODELS)
def test_half_of_all_channels_go_and_the_outputs_stay(name):
    model, graph, images = built(name)
    assert [group.name for group in graph.groups] == MODELS[name][1]
    trained = with_dead_channels(model, graph)
    slim, certificate = resrep_dist.merge(trained, graph, images)
    assert certificate.max_relative_difference < 1e-5
    np.testing.assert_allclose(slim(images), trained(images), atol=1e-4)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert sum(kept) < sum(graph.widths)
    of_slim = trace(slim)
    assert of_slim.macs.total(of_slim.widths) == graph.macs.total(kept)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_training_shrinks_and_is_folded_anew(name):
    model, graph, images = built(name)
    trained = with_dead_channels(model, graph)
    dead = [trained.get_layer(group.layers[0].compactor).mask.numpy() == 0 for group in graph.groups]
    narrow = without_channels(trained, graph, dead)
    np.testing.assert_allclose(narrow(images), trained(images), atol=1e-4)
    np.testing.assert_allclose(refolded(narrow, graph)(images), trained(images), atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
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
