"""What is written means the same in Keras 3: every layer that a file may hold, in one process of Keras 3."""

import dataclasses

from resrep_dist.errors import CertificateError, ModelError
from resrep_dist.graph import trace
from resrep_dist.merging import keras3
from resrep_dist.merging.certificate import Certificate, check_certificate
from resrep_dist.merging.keras3 import compare_in_keras3, outputs_in_keras3
from resrep_dist.merging.merge import merge
from resrep_dist.models.architecture import _ACTIVATIONS
from resrep_dist.models.files import load_model, save_model
from tests.networks import randomise, with_dead_channels

import numpy as np
import pytest
from tensorflow import keras

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(scale=2.0, size=(4, 6, 6, 3)).astype(np.float32)
LAYERS = {
    **{f"activation_{name}": (lambda name: lambda x: layers.Activation(name)(x))(name) for name in _ACTIVATIONS},
    "hard_sigmoid": lambda x: layers.Activation("hard_sigmoid")(x),
    "hard_sigmoid_built_in": lambda x: layers.Dense(5, activation="hard_sigmoid")(x),
    "hard_sigmoid_transposed": lambda x: layers.Conv2DTranspose(4, 3, activation="hard_sigmoid")(x),
    "hard_sigmoid_twice": lambda x: (lambda gate: layers.Add()([gate(x), gate(layers.ReLU()(x))]))(
        layers.Activation("hard_sigmoid")
    ),
    "thresholded": lambda x: layers.ThresholdedReLU(0.7)(x),
    "leaky": lambda x: layers.LeakyReLU(0.1)(x),
    "elu": lambda x: layers.ELU(0.5)(x),
    "relu": lambda x: layers.ReLU(6.0, 0.1, 0.5)(x),
    "bilinear": lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x),
    "bicubic": lambda x: layers.UpSampling2D(2, interpolation="bicubic")(x),
    "transposed": lambda x: layers.Conv2DTranspose(4, 3, 2, "same")(x),
    "transposed_valid": lambda x: layers.Conv2DTranspose(4, 2, 3)(x),
    "transposed_padding": lambda x: layers.Conv2DTranspose(4, 3, 2, output_padding=1)(x),
    "separable": lambda x: layers.SeparableConv2D(4, 3, 2)(x),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, dilation_rate=2, depth_multiplier=2)(x),
    "grouped": lambda x: layers.Conv2D(6, 3, groups=3)(x),
    "constrained": lambda x: layers.Conv2D(6, 3, kernel_constraint="max_norm", activity_regularizer="l2")(x),
    "average_pool": lambda x: layers.AveragePooling2D(3, 2, "same")(x),
    "batch_norm": lambda x: layers.BatchNormalization(center=False)(x),
    "layer_norm": lambda x: layers.LayerNormalization(center=False)(x),
    "group_norm": lambda x: layers.GroupNormalization(3)(x),
    "resizing": lambda x: layers.Resizing(4, 9)(x),
    "resizing_bicubic": lambda x: layers.Resizing(9, 4, interpolation="bicubic")(x),
    "resizing_crop": lambda x: layers.Resizing(4, 8, crop_to_aspect_ratio=True)(x),
    "center_crop": lambda x: layers.CenterCrop(4, 2)(x),
    "prelu": lambda x: layers.PReLU(shared_axes=[1, 2])(x),
    "normalization": lambda x: layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[2.0, 3.0, 4.0])(x),
    "rescaling": lambda x: layers.Rescaling(1 / 64, offset=[0.1, 0.2, 0.3])(x),
    "gate": lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]),
    "dropout": lambda x: layers.Dropout(0.1, noise_shape=(None, 1, 1, 3))(x),
}


def model_of(layer):
    inputs = keras.Input([6, 6, 3])
    model = keras.Model(inputs, layer(inputs))
    for weight in model.weights:
        if weight.dtype.is_floating and not weight.name.startswith("normalization"):
            random = np.random.default_rng(1)
            weight.assign(0.1 + np.abs(0.5 * random.normal(size=weight.shape)))
    return model


def test_every_layer_means_the_same(tmp_path):
    # One model with all of them, since a process with Keras 3 takes its time to start.
    keras.utils.set_random_seed(0)
    inputs = keras.Input([6, 6, 3])
    outputs = []
    for make in LAYERS.values():
        outputs.append(layers.GlobalAveragePooling2D()(make(inputs)))
        outputs[-1] = layers.Flatten()(outputs[-1])
    model = keras.Model(inputs, outputs)
    for weight in model.weights:
        if weight.dtype.is_floating and not weight.name.startswith("normalization"):
            weight.assign(0.1 + np.abs(0.5 * np.random.default_rng(1).normal(size=weight.shape)))
    save_model(model, tmp_path / "model.h5")
    version, received = outputs_in_keras3(tmp_path / "model.h5", IMAGES)
    assert version.startswith("3.")
    again = load_model(tmp_path / "model.h5").predict(IMAGES, verbose=0)
    for name, expected, ours, theirs in zip(LAYERS, model.predict(IMAGES, verbose=0), again, received, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(theirs, expected, atol=1e-5, err_msg=name)
    assert compare_in_keras3(model, tmp_path / "model.h5", IMAGES).max_relative_difference < 1e-5


@pytest.mark.parametrize(
    "layer, expected",
    [
        (lambda x: layers.LayerNormalization(axis=[1, 2])(x), "a LayerNormalization of several axes"),
        (
            lambda x: layers.LocallyConnected2D(4, 3, activation="hard_sigmoid")(x),
            "hard_sigmoid in a LocallyConnected2D",
        ),
    ],
)
def test_what_means_something_else_and_cannot_be_replaced_is_refused(tmp_path, layer, expected):
    with pytest.raises(ModelError, match=expected):
        save_model(model_of(layer), tmp_path / "model.h5")
    assert not (tmp_path / "model.h5").exists()


def test_layers_that_would_have_one_name_in_a_file_are_refused_before_it_is_written(tmp_path):
    inputs = keras.Input([6, 6, 3])
    pair = keras.Model(inputs, layers.ReLU(name="a_b")(layers.Conv2D(4, 1, name="a/b")(inputs)), name="inner")
    for model in (pair, keras.Model(inputs, layers.Flatten()(pair(inputs)))):
        with pytest.raises(ModelError, match="layers a/b and a_b: both are a_b in a file, since Keras 3 allows no /"):
            save_model(model, tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


def test_a_gated_model_is_merged_and_its_file_compared(tmp_path):
    inputs = keras.Input([6, 6, 3])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3)(inputs)))
    gate = layers.Conv2D(12, 1, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(8, 1)(layers.Multiply()([x, gate]))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    graph = trace(model)
    assert graph.groups
    trained = with_dead_channels(model, graph)
    slim, _ = merge(trained, graph, IMAGES)
    save_model(slim, tmp_path / "slim.h5")
    for path in (tmp_path / "slim.h5", f"{tmp_path}/slim.h5"):
        assert compare_in_keras3(trained, path, IMAGES).max_relative_difference < 1e-5


def test_a_file_that_keras_3_cannot_load_is_refused_and_a_missing_keras_3_is_said(tmp_path, monkeypatch, caplog):
    model = model_of(lambda x: layers.ThresholdedReLU(0.5)(x))
    model.save(tmp_path / "other.h5")
    with pytest.raises(CertificateError, match="Keras 3 cannot load or run it .*ThresholdedReLU"):
        compare_in_keras3(model, tmp_path / "other.h5", IMAGES)
    monkeypatch.setattr(keras3, "_PROGRAM", "import sys; sys.exit(3)")
    assert compare_in_keras3(model, tmp_path / "other.h5", IMAGES) is None
    assert "Keras 3 cannot be used here" in caplog.text


@pytest.mark.parametrize("number", [0, 1])
def test_a_nan_in_any_output_is_the_largest_difference(tmp_path, monkeypatch, number):
    inputs = keras.Input([6, 6, 3])
    model = keras.Model(inputs, [layers.Flatten()(inputs), layers.GlobalAveragePooling2D()(inputs)])
    outputs = [output.numpy() for output in model(IMAGES)]
    outputs[number][0, 0] = np.nan
    monkeypatch.setattr(keras3, "outputs_in_keras3", lambda path, images: ("3.9.0", outputs))
    assert np.isnan(compare_in_keras3(model, tmp_path / "model.h5", IMAGES).max_relative_difference)


def test_the_certificate_has_a_limit_for_keras_3_too():
    good = Certificate(256, 1e-6, 1e-6, 1.0, {}, "3.9.0", 1e-6)
    check_certificate(good, 1e-4)
    for value in (1e-3, float("nan")):
        with pytest.raises(CertificateError, match="differs in Keras 3.9.0 from the trained model"):
            check_certificate(dataclasses.replace(good, keras3_max_relative_difference=value), 1e-4)
