"""Slim models as files that both versions of Keras read."""

from resrep_dist.graph import trace
from resrep_dist.merging import merge
from resrep_dist.models.files import load_model, save_model
from tests.networks import randomise, with_dead_channels
from tests.quality.coverage import load_in_keras3, save_arrays

import numpy as np
import pytest
from tensorflow import keras

layers = keras.layers


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A slim model with depthwise convolutions and slashes in its names; file, images, outputs."""
    x = inputs = keras.Input([16, 16, 3], name="images/input")
    x = layers.ReLU(name="stem/relu")(layers.Conv2D(8, 3, name="stem/conv")(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="block/depthwise")(x)
    y = layers.BatchNormalization(name="block/depthwise/norm")(y)
    x = layers.Concatenate(name="block/concat")([x, layers.Conv2D(6, 1, activation="relu", name="block/conv")(y)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x))
    randomise(model)
    graph = trace(model)
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    slim, _ = merge(with_dead_channels(model, graph), graph, images, tolerance=1e-5)
    path = tmp_path_factory.mktemp("slim") / "model.h5"
    save_model(slim, path)
    return path, images, slim(images).numpy()


def test_keras_2_reads_the_file(saved):
    path, images, outputs = saved
    model = load_model(path)
    np.testing.assert_array_equal(model(images), outputs)
    assert not any("/" in layer.name for layer in model.layers)


@pytest.mark.slow
def test_keras_3_reads_the_file(saved):
    path, images, outputs = saved
    save_arrays(path, images, outputs)
    version, results = load_in_keras3([path])
    assert version.startswith("3.")
    assert results[str(path)] < 1e-6
