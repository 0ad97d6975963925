"""What a rebuilt model keeps of the one that it is made from."""

import resrep_dist
from resrep_dist.graph import flatten, rebuild, stored_order
from resrep_dist.models.files import load_model
from tests.networks import randomise, with_dead_channels

import numpy as np
import pytest
from tensorflow import keras

layers = keras.layers


@pytest.fixture(scope="module")
def two_heads():
    """Inputs and outputs by name, in no order of the alphabet, one head behind a softmax."""
    image, size = keras.Input([16, 16, 3], name="photo"), keras.Input([2], name="extent")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="a")(image)))
    x = layers.Conv2D(12, 3, activation="relu", name="b")(x)
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), size])
    outputs = {
        "kind": layers.Dense(3, activation="softmax", name="z_dense")(pooled),
        "box": layers.Dense(4, name="dense")(pooled),
    }
    model = keras.Model({"the_image": image, "its_size": size}, outputs)
    randomise(model)
    random = np.random.default_rng(0)
    images = {"the_image": random.normal(size=(20, 16, 16, 3)), "its_size": random.normal(size=(20, 2))}
    return model, {name: array.astype(np.float32) for name, array in images.items()}


def test_inputs_and_outputs_that_have_names_keep_them_from_the_trace_to_the_files(two_heads, tmp_path):
    model, images = two_heads
    expected = model(images)
    assert rebuild(model)(images).keys() == expected.keys()
    graph = resrep_dist.trace(model)
    assert [group.name for group in graph.groups] == ["a", "b"]
    trained = with_dead_channels(model, graph)
    slim, certificate = resrep_dist.merge(trained, graph, images)
    assert certificate.relative_differences.keys() == {"box", "kind"}
    assert max(certificate.relative_differences.values()) == certificate.max_relative_difference < 1e-5
    expected = trained(images)
    resrep_dist.save_model(slim, tmp_path / "slim.h5")
    for received in (slim(images), load_model(tmp_path / "slim.h5")(images)):
        assert received.keys() == {"kind", "box"}
        for name in expected:
            np.testing.assert_allclose(received[name], expected[name], atol=1e-4)
    assert resrep_dist.compare_in_keras3(trained, tmp_path / "slim.h5", images).max_relative_difference < 1e-5
    exported = resrep_dist.export_model(slim, "tflite", tmp_path, images, tolerance=1e-4)
    assert exported.relative_differences.keys() == {"box", "kind"}


def test_a_copy_knows_the_order_of_the_first_model_under_its_own_names():
    image = keras.Input([4, 4, 3], name="a")
    inner = keras.Model(image, layers.Conv2D(3, 1, name="b")(image), name="inner")
    x = inputs = keras.Input([4, 4, 3], name="image")
    x = layers.Conv2D(3, 1, activation="relu", name="a")(inner(x))
    model = keras.Model(inputs, layers.Conv2D(2, 1, activation="tanh", name="b")(x))
    order = [("InputLayer", "image"), ("Conv2D", "inner_b"), ("Conv2D", "a"), ("Conv2D", "b")]
    assert stored_order(flatten(model)) == order
    swapped = rebuild(rebuild(model), names={"a": "b", "b": "a"})
    assert stored_order(swapped) == [*order[:2], ("Conv2D", "b"), ("Conv2D", "a")]
    assert stored_order(flatten(swapped)) == stored_order(swapped)


def test_a_softmax_stays_in_the_layers_that_make_outputs_up_to_the_files(tmp_path):
    head = keras.Sequential([keras.Input([8]), layers.Dense(3, activation="softmax", name="kind")], name="head")
    head = keras.Sequential([keras.Input([8]), head], name="outer_head")
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    gate = layers.Dense(8, activation="softmax", name="gate")(layers.GlobalAveragePooling2D()(x))
    outputs = {
        "kind": head(gate),
        "part": layers.Conv2D(4, 1, activation="softmax", name="part")(x),
        "moved": layers.Flatten()(layers.Dense(2, activation="softmax", name="moved")(gate)),
    }
    model = keras.Model(inputs, outputs)
    randomise(model)
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)
    graph = resrep_dist.trace(model)
    assert [group.name for group in graph.groups] == ["conv"]
    assert graph.refused == {"part": "its channels are an output of the model"}
    trained = with_dead_channels(model, graph)
    slim, certificate = resrep_dist.merge(trained, graph, images)
    assert certificate.max_relative_difference < 1e-5
    resrep_dist.save_model(slim, tmp_path / "slim.h5")
    read = keras.models.load_model(tmp_path / "slim.h5", compile=False)
    for each in (flatten(model), rebuild(flatten(model)), trained, slim, read):
        functions = {name: each.get_layer(name).activation.__name__ for name in ("kind", "part", "gate", "moved")}
        assert functions == {"kind": "softmax", "part": "softmax", "gate": "linear", "moved": "linear"}
