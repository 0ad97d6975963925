from resrep_dist.config import ModelConfig
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.graph import trace, with_input_size
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.models.building import build_model
from tests.networks import randomise, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


def chain(*between, **convolution):
    """conv a, the given layers, conv b, pooling, dense."""
    x = inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, name="a", **convolution)(x)
    for layer in between:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 1, name="b")(x))
    return keras.Model(inputs, layers.Dense(2, name="dense")(x))


def test_internal_layers_of_a_residual_network_are_found_and_the_others_explained():
    graph = trace(build_model(ModelConfig(name="resnet20", num_classes=10, image_size=16)))
    assert [layer.name for layer in graph.layers] == [
        f"stage{stage}_block{block}_conv1" for stage in (1, 2, 3) for block in (1, 2, 3)
    ]
    assert graph.groups[0].consumers == ("stage1_block1_conv2",)
    reason = "its channels meet others in the Add stage1_block1_add; prune.residual_groups prunes them together"
    assert graph.refused["stem"] == reason


@pytest.mark.parametrize(
    "layer",
    [layers.ReLU(), layers.Activation("tanh"), layers.MaxPooling2D(), layers.ZeroPadding2D(), layers.Dropout(0.1)],
)
def test_channels_pass_layers_that_keep_zero(layer):
    assert [found.name for found in trace(chain(layer)).layers] == ["a", "b"]


@pytest.mark.parametrize("layer", [layers.Activation("sigmoid"), layers.BatchNormalization(), layers.Rescaling(2.0, 1)])
def test_a_constant_passes_into_a_1x1_convolution_but_not_into_a_padded_one(layer):
    assert [group.name for group in trace(chain(layers.ReLU(), layer)).groups] == ["a", "b"]
    refused = trace(chain(layers.ReLU(), layer, layers.Conv2D(3, 3, padding="same", name="wide"))).refused
    assert refused == {"a": "a dead channel would be a constant, which wide cannot hold in its bias"}


@pytest.mark.parametrize(
    "layer", [layers.ZeroPadding2D(name="border"), layers.DepthwiseConv2D(3, 1, "same", name="border")]
)
def test_a_constant_that_a_layer_pads_with_zeros_is_refused_by_its_name(layer):
    assert [group.name for group in trace(chain(layer)).groups] == ["a", "b"]
    reason = trace(chain(layers.Activation("sigmoid"), layer)).refused["a"]
    assert reason == "a dead channel would be a constant, and border pads it with zeros"


STATISTICS = "whose mean and variance a channel that is zero changes too"


@pytest.mark.parametrize(
    "layer, reason",
    [
        (layers.Activation("softmax", name="s"), "the activation s mixes its channels"),
        (layers.LayerNormalization(name="n"), f"its channels reach n, a LayerNormalization, {STATISTICS}"),
        (layers.GroupNormalization(2, name="n"), f"its channels reach n, a GroupNormalization, {STATISTICS}"),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, name="d"), "its channels reach d, a DepthwiseConv2D"),
        (
            layers.MaxPooling2D(data_format="channels_first", name="p"),
            "its channels reach p, a channels_first MaxPooling2D",
        ),
    ],
)
def test_other_layers_are_refused_by_name(layer, reason):
    assert trace(chain(layer)).refused["a"] == reason


def test_a_convolution_for_channels_first_is_refused_with_the_fix():
    inputs = keras.Input([3, 8, 8])
    x = layers.Conv2D(4, 3, data_format="channels_first", name="a")(inputs)
    graph = trace(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    assert graph.refused["a"] == "it is channels_first; build the model with channels_last"
    assert graph.macs.total([]) == 6 * 6 * 9 * 3 * 4 + 6 * 6 * 4 * 2


def test_a_frozen_convolution_stays_but_may_lose_inputs():
    graph = trace(chain(layers.Conv2D(5, 3, trainable=False, name="frozen")))
    assert graph.refused == {"frozen": "it is frozen"}
    assert graph.groups[0].consumers == ("frozen",)


def test_an_output_of_the_model_is_refused():
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, name="a")(inputs)
    assert trace(keras.Model(inputs, x)).refused["a"] == "its channels are an output of the model"


def test_excluded_layers_stay_and_unknown_ones_are_an_error():
    assert [layer.name for layer in trace(chain(), exclude=["a"]).layers] == ["b"]
    with pytest.raises(ModelError, match="received 'c'"):
        trace(chain(), exclude=["c"])


def test_subclassed_models_and_open_sizes_are_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ModelError, match="functional"):
        trace(Subclassed())
    inputs = keras.Input([None, None, 3])
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="a")(inputs))
    with pytest.raises(ModelError, match=r"input size is open, \(None, None, None, 3\); .*with_input_size"):
        trace(model)
    fixed = with_input_size(model, (7, 9))
    assert trace(fixed).macs.total([]) == 5 * 7 * 9 * 3 * 4
    images = tf.random.stateless_normal([2, 7, 9, 3], [0, 1])
    np.testing.assert_array_equal(fixed(images), model(images))


def test_multiply_adds_of_widths_are_those_of_a_model_built_at_them():
    def build(a, b):
        x = inputs = keras.Input([9, 9, 3])
        x = layers.ReLU()(layers.Conv2D(a, 3, name="a")(x))
        x = layers.MaxPooling2D()(layers.Conv2D(b, 2, name="b")(x))
        return keras.Model(inputs, layers.Dense(5, name="dense")(layers.Flatten()(x)))

    graph = trace(build(6, 8))
    assert graph.macs.total([6, 8]) == 7 * 7 * 9 * 3 * 6 + 6 * 6 * 4 * 6 * 8 + 3 * 3 * 8 * 5
    small = trace(build(2, 5))
    assert graph.macs.total([2, 5]) == small.macs.total([2, 5])
    before, after = graph.macs.total([6, 8]), graph.macs.total([5, 8])
    assert graph.macs.per_channel([6, 8])[0] == before - after


@pytest.mark.timeout(60)
def test_two_divisions_that_a_layer_cannot_have_at_once_end_the_trace():
    # Of the 12 channels of `c` the addition wants 16 parts, or a multiple, and the grouped convolution wants 3.
    small, large = keras.Input([2, 2, 3]), keras.Input([4, 4, 3])
    c = layers.ReLU()(layers.Conv2D(12, 1, name="c")(small))
    pixels = layers.Flatten()(layers.ReLU()(layers.Conv2D(3, 1, name="pixels")(large)))
    dense = layers.ReLU()(layers.Dense(48, name="units")(layers.GlobalAveragePooling2D()(large)))
    x = layers.Add(name="second")([layers.Add(name="first")([pixels, dense]), layers.Flatten()(c)])
    for _ in range(4):
        x = layers.Dense(4)(x)
    grouped = layers.Conv2D(12, 1, groups=3, name="grouped")(c)
    outputs = layers.Add()([x, layers.Dense(4)(layers.GlobalAveragePooling2D()(grouped))])
    graph = trace(keras.Model([small, large], outputs), residual_groups=True)
    assert [(group.name, group.num_parts) for group in graph.groups] == [("grouped", 3)]
    assert graph.refused == {
        "c": "its channels meet differently divided ones in the Add second",
        "pixels": "its channels meet differently divided ones in the Add first",
    }


def test_sequential_models_are_traced():
    model = keras.Sequential([layers.Conv2D(4, 3, input_shape=[8, 8, 3]), layers.Flatten(), layers.Dense(2)])
    assert len(trace(model).layers) == 1


@pytest.mark.parametrize("make", [small_network, lambda: build_model(ModelConfig("resnet18", 10, 32))])
def test_fresh_compactors_change_nothing(make):
    model = make()
    randomise(model)
    graph = trace(model)
    pruned = insert_compactors(model, graph)
    images = tf.random.stateless_normal([4, *model.input_shape[1:]], [0, 1])
    np.testing.assert_array_equal(model(images), pruned(images))
    assert [c.name for c in compactors_of(pruned, graph)] == [layer.compactor for layer in graph.layers]


@pytest.mark.parametrize(
    "name, num_parameters",  # torchvision's, as its documentation lists them
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160),
     ("resnet152", 60_192_808)],
)  # fmt: skip
def test_imagenet_models_have_the_known_number_of_parameters(name, num_parameters):
    model = build_model(ModelConfig(name=name, num_classes=1000, image_size=224))
    assert sum(int(tf.size(w)) for w in model.trainable_weights) == num_parameters


@pytest.mark.parametrize("depth, num_convolutions", [(20, 21), (32, 33), (56, 57), (110, 111)])
def test_cifar_models_have_the_depth_of_their_name(depth, num_convolutions):
    model = build_model(ModelConfig(name=f"resnet{depth}", num_classes=10, image_size=32))
    assert sum(isinstance(layer, layers.Conv2D) for layer in model.layers) == num_convolutions


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean `resnet56`"):
        build_model(ModelConfig(name="resnet5", num_classes=10, image_size=32))
