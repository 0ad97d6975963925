"""Exact merges of all that the graph knows, with random dead channels."""

from resrep_dist.config import ModelConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging import merge, surgery
from resrep_dist.models.building import build_model
from resrep_dist.pruning.pruner import Pruner
from tests.networks import randomise, small_config, train_state, with_dead_channels

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


def grouped():
    """Convolutions of 2 and of 4 groups, so of four parts, one with a gate; a sigmoid's constant in front of one."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(8, 1, 2, name="narrow")(x), "narrow")
    x = normed(layers.Conv2D(16, 3, padding="same", groups=2, use_bias=False, name="by2")(x), "by2")
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(16, 1, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = normed(layers.Conv2D(8, 3, groups=4, name="by4")(x), "by4", "sigmoid")
    x = normed(layers.Conv2D(12, 3, groups=2, use_bias=False, name="last")(x), "last")
    return classifier(inputs, x)


def grouped_residual_network():
    """A stream that a grouped convolution takes, and that meets another layer later."""
    x = inputs = keras.Input([16, 16, 3])
    x = normed(layers.Conv2D(8, 3, 2, "same", name="stem")(x), "stem")
    y = normed(layers.Conv2D(8, 3, padding="same", groups=4, name="by4")(x), "by4")
    x = layers.Add(name="add")([x, layers.Conv2D(8, 1, name="wide")(y)])
    return classifier(inputs, layers.ReLU(name="relu")(x))


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
    "grouped": (grouped, False, [["narrow"], ["by2"], ["by4"], ["last"]], "slices"),
    "grouped_residual": (grouped_residual_network, True, [["stem", "wide"], ["by4"]], "slices"),
    "inner_models": (
        inner_models_and_dense_images, False, [["conv"], ["pointwise"], ["up"], ["last"]], "slices",
    ),
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
    kept = [certificate.channels[group.name]["kept"] // group.num_parts for group in graph.groups]
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
    monkeypatch.setattr(folding, "dead_constants", lambda *arguments: {})
    with pytest.raises(CertificateError):
        merge(trained, graph, np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32))


def test_the_groups_of_a_convolution_lose_the_same_channels_and_its_compactor_mixes_none_of_them():
    model = grouped()
    graph = trace(model)
    assert [(group.width, group.num_parts) for group in graph.groups] == [(4, 2), (4, 4), (2, 4), (6, 2)]
    pruned = insert_compactors(model, graph)
    compactor = pruned.get_layer("by2_compactor")
    assert compactor.kernel.shape == [1, 1, 8, 16]
    compactor.kernel.assign(np.random.default_rng(0).normal(size=compactor.kernel.shape))
    matrix = compactor.matrix()
    assert np.all(matrix[:8, 8:] == 0) and np.all(matrix[8:, :8] == 0) and np.count_nonzero(matrix) == 128
    images = np.random.default_rng(1).normal(size=(2, 5, 5, 16)).astype(np.float32)
    np.testing.assert_allclose(compactor(images), images @ matrix, atol=1e-5)
    np.testing.assert_allclose(compactor(images[:, 0, 0]), images[:, 0, 0] @ matrix, atol=1e-5)

    config = small_config(prune={"target_macs_fraction": 0.5, "channels_per_update": 3})
    pruner = Pruner(train_state(pruned, graph), graph, config.prune, Cluster(), first_step=0, last_step=100)
    for layer in graph.layers:
        kernel = pruned.get_layer(layer.compactor).kernel
        kernel.assign(np.random.default_rng(2).normal(size=kernel.shape))
    pruner.update()
    assert sum(pruner.unmasked_widths()) == sum(graph.widths) - 3
    for group in graph.groups:
        mask = pruned.get_layer(group.layers[0].compactor).mask.numpy().reshape(group.num_parts, group.width)
        assert np.all(mask == mask[0])


def test_a_grouped_convolution_whose_inputs_cannot_be_divided_is_named():
    inputs = keras.Input([16, 16, 3])
    x = layers.Concatenate(name="both")([layers.Conv2D(3, 1, name="a")(inputs), layers.Conv2D(5, 1, name="b")(inputs)])
    graph = trace(classifier(inputs, layers.Conv2D(4, 3, groups=2, name="g")(x)))
    assert [group.name for group in graph.groups] == ["g"]
    assert graph.refused["a"] == "its channels reach g, a convolution of 2 groups that differ in them"


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
