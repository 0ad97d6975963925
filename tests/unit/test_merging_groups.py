"""Exact merges of all that the graph knows, with random dead channels."""

from resrep_dist.compactor import insert_compactors
from resrep_dist.config import ModelConfig
from resrep_dist.graph import trace
from resrep_dist.merging import merge, surgery
from resrep_dist.models import build_model
from tests.networks import randomise, with_dead_channels

import numpy as np
import pytest
from tensorflow import keras

layers = keras.layers


def normed(x, name, activation="relu"):
    return layers.Activation(activation, name=f"{name}_{activation}")(layers.BatchNormalization(name=f"{name}_bn")(x))


def classifier(inputs, x, **dense):
    return keras.Model(inputs, layers.Dense(10, name="logits", **dense)(layers.GlobalAveragePooling2D(name="pool")(x)))


def mobilenet():
    """Convolution, depthwise convolutions with and without bias, 1x1 convolutions."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(8, 3, 2, "same", use_bias=False, name="stem")(x), "stem")
    for block, width in enumerate((12, 16), start=1):
        x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"pad{block}")(x)
        x = normed(layers.DepthwiseConv2D(3, 2, use_bias=block == 2, name=f"dw{block}")(x), f"dw{block}")
        x = normed(layers.Conv2D(width, 1, use_bias=False, name=f"pw{block}")(x), f"pw{block}")
    return classifier(inputs, x)


def constants():
    """Activations that do not map 0 to 0, poolings behind them, an unpadded and a separable convolution."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(6, 3, name="a")(x), "a", "sigmoid")
    x = layers.MaxPooling2D(3, 2, "same", name="max")(x)
    x = normed(layers.Conv2D(8, 3, use_bias=False, name="b")(x), "b", "softplus")
    x = layers.BatchNormalization(name="late_bn")(layers.AveragePooling2D(3, 1, "same", name="average")(x))
    x = normed(layers.SeparableConv2D(8, 3, name="c", use_bias=False)(x), "c", "hard_sigmoid")
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.BatchNormalization(name="flat_bn")(x)))


def plain_constants():
    """The same where kerassurgeon can: its consumer had no bias."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(6, 3, name="a")(x), "a", "sigmoid")
    x = normed(layers.Conv2D(8, 3, use_bias=False, name="b")(x), "b", "tanh")
    return classifier(inputs, x)


def dense_block():
    """Concatenation: every layer sees all before it, through a batch norm of its own."""
    x = inputs = keras.Input([16, 16, 3])
    x = layers.Conv2D(6, 3, 2, "same", name="stem")(x)
    for block in range(3):
        y = normed(x, f"norm{block}")
        y = normed(layers.Conv2D(8, 1, name=f"narrow{block}")(y), f"narrow{block}")
        y = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"wide{block}")(y)
        x = layers.Concatenate(name=f"concat{block}")([x, y])
    return classifier(inputs, normed(x, "last"), activation="softmax")


def squeeze_and_excite(kind, behind_depthwise):
    """A gate of dense layers or 1x1 convolutions; behind a depthwise convolution the gated channel is a constant."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(8, 3, 2, "same", name="expand")(x), "expand", "swish")
    if behind_depthwise:
        x = normed(layers.DepthwiseConv2D(3, padding="same", name="dw")(x), "dw", "swish")
    gate = layers.GlobalAveragePooling2D(name="squeeze", keepdims=kind == "convolutions")(x)
    if kind == "dense":
        gate = layers.Dense(4, activation="relu", name="reduce")(gate)
        gate = layers.Dense(8, activation="sigmoid", name="excite")(gate)
        gate = layers.Reshape((1, 1, 8), name="reshape")(gate)
    else:
        gate = layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
        gate = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply(name="gate")([x, gate])
    return classifier(inputs, normed(layers.Conv2D(6, 1, name="project")(x), "project"))


def residual_network():
    """A stream of stem, second convolutions and a projection; an inverted bottleneck of one stream with itself."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(8, 3, 2, "same", name="stem")(x), "stem")
    y = layers.Conv2D(8, 3, padding="same", name="conv")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add1")([x, layers.BatchNormalization(name="conv_bn")(y)]))
    x = layers.Add(name="add2")([x, layers.Conv2D(8, 1, name="itself")(x)])
    return classifier(inputs, x)


def shared_activation():
    """One ReLU for all: no layer that channels pass may be made twice."""
    relu = layers.ReLU(name="relu")
    x = inputs = keras.Input([16, 16, 3])
    x = relu(layers.Conv2D(6, 3, name="a")(x))
    return classifier(inputs, relu(layers.Conv2D(8, 3, name="b")(x)))


def inner_models_and_dense_images():
    """An inner model, a dense layer on images, a transposed convolution."""
    inner_inputs = keras.Input([16, 16, 3])
    y = layers.Dense(8, activation="gelu", name="pointwise")(layers.Conv2D(6, 3, 2, "same", name="conv")(inner_inputs))
    inner = keras.Model(inner_inputs, layers.Conv2DTranspose(5, 3, 2, "same", name="up")(y), name="inner")
    x = inputs = keras.Input([16, 16, 3])
    x = layers.UpSampling2D(2, interpolation="bilinear", name="bigger")(
        layers.MaxPooling2D(2, name="smaller")(inner(x))
    )
    return classifier(inputs, layers.Conv2D(7, 3, activation="relu", name="last")(x))


MODELS = {  # builder, residual groups, layers of the groups, path
    "mobilenet": (mobilenet, False, [["stem"], ["pw1"], ["pw2"]], "slices"),
    "constants": (constants, False, [["a"], ["b"], ["c"]], "slices"),
    "plain_constants": (plain_constants, False, [["a"], ["b"]], "kerassurgeon"),
    "dense_block": (
        dense_block, False,
        [["stem"], ["narrow0"], ["wide0"], ["narrow1"], ["wide1"], ["narrow2"], ["wide2"]], "slices",
    ),
    "gate_of_dense": (
        lambda: squeeze_and_excite("dense", False), False, [["expand"], ["project"]], "slices",
    ),
    "gate_of_dense_behind_depthwise": (
        lambda: squeeze_and_excite("dense", True), False, [["expand", "excite"], ["project"]], "slices",
    ),
    "gate_of_convolutions_behind_depthwise": (
        lambda: squeeze_and_excite("convolutions", True), False,
        [["expand", "excite"], ["reduce"], ["project"]], "slices",
    ),
    "shared_activation": (shared_activation, False, [["a"], ["b"]], "slices"),
    "residual": (residual_network, True, [["stem", "conv", "itself"]], "slices"),
    "inner_models": (inner_models_and_dense_images, False, [["conv"], ["pointwise"], ["last"]], "slices"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_slim_model_gives_the_same_outputs_and_has_the_counted_size(name):
    build, residual_groups, expected_groups, path = MODELS[name]
    model = build()
    randomise(model)
    graph = trace(model, residual_groups=residual_groups)
    assert [[layer.name for layer in group.layers] for group in graph.groups] == expected_groups
    assert ("kerassurgeon" if surgery.kerassurgeon_can(graph) else "slices") == path
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), insert_compactors(model, graph)(images), atol=1e-5)
    trained = with_dead_channels(model, graph)
    slim, certificate = merge(trained, graph, images, tolerance=1e-5)
    kept = [certificate.channels[group.name]["kept"] for group in graph.groups]
    assert all(width > 0 for width in kept) and sum(kept) < 0.8 * sum(graph.widths)
    slim_graph = trace(slim)
    assert slim_graph.macs.total(slim_graph.widths) == graph.macs.total(kept)
    assert not any("compactor" in layer.name for layer in slim.layers)


def test_a_constant_that_is_forgotten_is_found(monkeypatch):
    """The models above do have constants in their dead channels, or this would pass."""
    from resrep_dist.errors import CertificateError
    from resrep_dist.merging import folding

    model = mobilenet()
    randomise(model)
    graph = trace(model)
    trained = with_dead_channels(model, graph)
    monkeypatch.setattr(folding, "_dead_constants", lambda *arguments: {})
    with pytest.raises(CertificateError):
        merge(trained, graph, np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32))


def test_every_stream_of_a_resnet20_is_one_group():
    model = build_model(ModelConfig("resnet20", 10, 16))
    randomise(model)
    graph = trace(model, residual_groups=True)
    assert [(group.name, len(group.layers), group.width) for group in graph.groups if len(group.layers) > 1] == [
        ("stem", 4, 16), ("stage2_block1_projection", 4, 32), ("stage3_block1_projection", 4, 64),
    ]  # fmt: skip
    assert len(graph.groups) == 12 and not graph.refused
    assert next(g for g in graph.groups if g.name == "stage3_block1_projection").consumers == (
        "logits", "stage3_block2_conv1", "stage3_block3_conv1",
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
    _, certificate = merge(with_dead_channels(model, graph), graph, images, tolerance=1e-5)
    assert certificate.argmax_agreement == 1.0
