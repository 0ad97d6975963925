"""What users' models really contain: inner models, shared layers, operators, layers nobody knows."""

from resrep_dist.errors import ModelError
from resrep_dist.graph import trace
from resrep_dist.graph.rebuilding import flatten
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging import merge
from tests.networks import randomise, with_dead_channels

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


def head(x):
    return layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D(name="pool")(x))


def assert_equal_outputs(model, other):
    images = tf.random.stateless_normal([4, *model.input_shape[1:]], [0, 1])
    for training in (False, True):
        np.testing.assert_allclose(model(images, training=training), other(images, training=training), atol=1e-6)


def block(name, width=4):
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(width, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    return keras.Model(inputs, layers.Conv2D(3, 1, name="project")(x), name=name)


def test_inner_models_are_taken_apart_and_names_stay_unique():
    inputs = keras.Input([8, 8, 3])
    outer = layers.Conv2D(5, 3, padding="same", name="conv")(inputs)
    x = layers.Conv2D(3, 1, name="second")(outer)
    x = block("first")(x)
    x = keras.Sequential([layers.Conv2D(6, 3, input_shape=[8, 8, 3], name="conv"), layers.ReLU()], name="tail")(x)
    model = keras.Model(inputs, head(x))
    randomise(model)
    graph = trace(model)
    names = ["conv", "second", "first_conv", "project", "tail_conv"]
    assert [layer.name for layer in graph.layers] == names
    assert_equal_outputs(model, insert_compactors(model, graph))


def test_an_inner_model_called_in_inference_mode_stays_in_it():
    inputs = keras.Input([8, 8, 3])
    model = keras.Model(inputs, head(block("frozen")(inputs, training=False)))
    randomise(model)
    assert_equal_outputs(model, flatten(model))


def test_built_in_activations_become_layers_and_the_last_softmax_stays():
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = layers.Dense(3, activation="softmax", name="probabilities")(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    graph = trace(model)
    pruned = insert_compactors(model, graph)
    assert [layer.name for layer in pruned.layers[1:4]] == ["a", "a_compactor", "a_activation"]
    assert pruned.layers[-1].activation is keras.activations.softmax
    assert_equal_outputs(model, pruned)


def test_arithmetic_on_tensors_becomes_layers():
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 1, name="a")(inputs)
    y = layers.Conv2D(4, 1, name="b")(inputs)
    x = tf.nn.relu6(2.0 * x - 0.5) / 3.0 + y * tf.nn.sigmoid(y)
    model = keras.Model(inputs, head(tf.nn.relu(x - y)))
    randomise(model)
    flat = flatten(model)
    assert not any("OpLambda" in type(layer).__name__ for layer in flat.layers)
    assert_equal_outputs(model, flat)
    assert [[layer.name for layer in group.layers] for group in trace(model, residual_groups=True).groups] == [
        ["a", "b"]
    ]


def test_a_shared_convolution_stays_and_a_shared_activation_does_no_harm():
    inputs = keras.Input([8, 8, 3])
    relu, shared = layers.ReLU(name="relu"), layers.Conv2D(4, 3, padding="same", name="shared")
    x = relu(layers.Conv2D(4, 3, padding="same", name="a")(inputs))
    x = relu(shared(shared(x)))
    x = relu(layers.Conv2D(6, 3, name="b")(x))
    graph = trace(keras.Model(inputs, head(x)))
    assert [layer.name for layer in graph.layers] == ["b"]
    assert graph.refused == {
        "a": "its channels reach shared, which is used at several places",
        "shared": "it is used at several places; one layer for each place could be pruned",
    }


def assert_merged_exactly(model, graph):
    images = tf.random.stateless_normal([8, *model.input_shape[1:]], [0, 1]).numpy()
    _, certificate = merge(with_dead_channels(model, graph), graph, images, tolerance=1e-5)
    kept = [certificate.channels[group.name]["kept"] // group.num_parts for group in graph.groups]
    assert sum(kept) < sum(graph.widths)


def test_a_gate_on_a_concatenation_stays_with_it_and_the_rest_is_pruned():
    inputs = keras.Input([8, 8, 3])
    x = [layers.Conv2D(8, size, padding="same", activation="relu", name=f"by{size}")(inputs) for size in (1, 3)]
    x = layers.Concatenate()(x)
    x = layers.Multiply(name="gated")([x, layers.Conv2D(16, 1, activation="sigmoid", name="gate")(x)])
    model = keras.Model(inputs, head(layers.Conv2D(4, 1, name="last")(x)))
    randomise(model)
    graph = trace(model)
    assert [group.name for group in graph.groups] == ["last"]
    reason = "its channels meet differently divided ones in the Multiply gated"
    assert graph.refused == dict.fromkeys(["by1", "by3", "gate"], reason)
    assert_merged_exactly(model, graph)


@pytest.mark.parametrize("join, activation", [(layers.Add, "relu"), (layers.Multiply, "sigmoid")])
def test_pixels_that_meet_the_units_of_a_dense_layer_stay(join, activation):
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(6, 3, activation="relu", name="first")(inputs)
    x = layers.Flatten()(layers.Conv2D(4, 3, 2, activation="relu", name="pixels")(x))
    # Divided into 4 parts to meet the pixels, but it has all 16 channels and the convolution 4.
    x = join(name="join")([x, layers.Dense(16, activation, name="units")(x)])
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    randomise(model)
    graph = trace(model, residual_groups=True)
    assert [group.name for group in graph.groups] == ["first"]
    reason = f"its channels meet differently divided ones in the {join.__name__} join"
    assert graph.refused == {"pixels": reason}
    assert_merged_exactly(model, graph)


def test_arithmetic_in_an_inner_model_that_is_called_twice_becomes_one_layer_for_both():
    image, other = keras.Input([8, 8, 4]), keras.Input([8, 8, 4])
    y = tf.nn.relu(layers.Conv2D(4, 3, padding="same", name="shared")(image))
    block = keras.Model([image, other], (y + image) * tf.nn.sigmoid(other) - 0.5, name="block")
    x = inputs = keras.Input([8, 8, 3])
    for number in range(2):
        x = block([layers.Conv2D(4, 3, padding="same", name=f"{name}{number}")(x) for name in "ab"])
    model = keras.Model(inputs, head(layers.Conv2D(6, 3, name="last")(x)))
    randomise(model)
    assert_equal_outputs(model, flatten(model))
    graph = trace(model, residual_groups=True)
    assert [group.name for group in graph.groups] == ["last"]
    assert_merged_exactly(model, graph)


@pytest.mark.parametrize("numbers", [1.0, np.arange(4.0)])
def test_a_number_for_each_channel_that_is_added_at_two_places_keeps_the_channels_of_both(numbers):
    image = keras.Input([8, 8, 4])
    add = keras.Model(image, image + numbers, name="add")
    x = inputs = keras.Input([8, 8, 3])
    for name in "ab":
        x = add(layers.Conv2D(4, 1, name=name)(x))
    model = keras.Model(inputs, head(layers.Conv2D(4, 1, name="last")(x)))
    randomise(model)
    graph = trace(model)
    is_one = np.ndim(numbers) == 0
    assert [group.name for group in graph.groups] == (["a", "b", "last"] if is_one else ["last"])
    reason = f"its channels reach {add.layers[-1].name}, a Rescaling that is used at several places"
    assert graph.refused == ({} if is_one else {"a": reason, "b": reason})
    assert_merged_exactly(model, graph)


def test_an_operator_that_is_called_with_other_numbers_is_refused():
    inputs = keras.Input([8, 8, 3])
    x = inputs + 1.0
    model = keras.Model(inputs, head(x.node.layer(layers.Conv2D(4, 3)(x), 2.0)))
    with pytest.raises(ModelError, match="called with different numbers or shapes, .* such as x [+] 1"):
        trace(model)


@keras.utils.register_keras_serializable("tests")
class Unknown(layers.Layer):
    def build(self, shape):
        self.weight = self.add_weight("weight", [shape[-1]])

    def call(self, x):
        return x * self.weight


def test_a_layer_that_nobody_knows_is_named_and_its_cost_is_said_to_be_unknown():
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, name="a")(inputs)
    x = layers.Conv2D(5, 1, name="b")(Unknown(name="mine")(x))
    graph = trace(keras.Model(inputs, head(x)))
    assert graph.refused == {"a": "its channels reach mine, a Unknown"}
    assert graph.uncounted == ("mine",)
    assert [layer.name for layer in graph.layers] == ["b"]


def test_layers_without_a_configuration_and_inner_subclassed_models_are_refused_by_name():
    class NoConfig(layers.Layer):
        def __init__(self, width):
            super().__init__(name="mine")
            self.width = width

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    with pytest.raises(ModelError, match="layer mine: a NoConfig cannot be copied"):
        trace(keras.Model(inputs, head(NoConfig(3)(x))))
    with pytest.raises(ModelError, match="model inner: expected a functional Keras model"):
        trace(keras.Model(inputs, head(Subclassed(name="inner")(x))))


def test_transposed_convolutions_are_counted_lose_inputs_and_are_pruned():
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, 2, "same", name="down")(inputs)
    x = layers.Conv2DTranspose(5, 3, 2, "same", name="up")(x)
    graph = trace(keras.Model(inputs, head(x)))
    assert graph.groups[0].consumers == ("up",)
    assert [group.name for group in graph.groups] == ["down", "up"] and not graph.refused
    assert graph.macs.total([4, 5]) == 4 * 4 * 9 * 3 * 4 + 4 * 4 * 9 * 4 * 5 + 5 * 3
    assert graph.macs.total([2, 3]) == 4 * 4 * 9 * 3 * 2 + 4 * 4 * 9 * 2 * 3 + 3 * 3
