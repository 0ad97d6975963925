"""Random small networks with random dead channels: the merged model gives the same outputs."""

import resrep_dist
from resrep_dist.errors import ModelError
from resrep_dist.graph.application_layers import LayerScale
from tests.networks import randomise, with_dead_channels

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tensorflow import keras

STEPS = ["conv", "conv", "conv", "depthwise", "residual", "concatenate", "pool"]
OTHER_STEPS = ["conv", "conv", "residual", "concatenate", "pool", "bridge", "normalize", "expand", "slope", "function"]
ACTIVATIONS = ["relu", "relu", "sigmoid", "tanh", "linear"]


class Network:
    """Blocks in a row, made of what hypothesis draws."""

    def __init__(self, draw):
        self._draw, self._layers = draw, keras.layers

    def build(self, steps):
        inputs = keras.Input([12, 12, 3])
        x = self.block(inputs, 4)
        for step in steps:
            x = getattr(self, step)(x)
        x = self._layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, self._layers.Dense(5, name="logits")(x))

    def block(self, x, width):
        size = self._draw(st.sampled_from([1, 3]))
        use_bias = self._draw(st.booleans())
        x = self._layers.Conv2D(width, size, padding="same", use_bias=use_bias)(x)
        if self._draw(st.booleans()):
            x = self._layers.BatchNormalization()(x)
        return self._layers.Activation(self._draw(st.sampled_from(ACTIVATIONS)))(x)

    def conv(self, x):
        return self.block(x, self._draw(st.integers(2, 7)))

    def depthwise(self, x):
        x = self._layers.DepthwiseConv2D(3, padding=self._draw(st.sampled_from(["same", "valid"])))(x)
        return self._layers.ReLU()(self._layers.BatchNormalization()(x))

    def residual(self, x):
        return self._layers.Add()([x, self.block(self.conv(x), x.shape[-1])])

    def concatenate(self, x):
        return self._layers.Concatenate()([self.conv(x), x])

    def pool(self, x):
        layer = self._draw(st.sampled_from([self._layers.MaxPooling2D, self._layers.AveragePooling2D]))
        return layer(2, padding="same")(x)


class OtherNetwork(Network):
    """Blocks of signals, images or volumes, with one or two inputs and heads.

    Args:
        draw: Draws from a strategy.
        rank: Number of axes between the samples and the channels.
    """

    def __init__(self, draw, rank):
        super().__init__(draw)
        self._rank = rank

    def layer(self, name):
        return getattr(self._layers, f"{name}{self._rank}D")

    def build(self, steps):
        inputs = [keras.Input([6] * self._rank + [3])]
        x = self.block(inputs[0], 4)
        if self._draw(st.booleans()):
            inputs.append(keras.Input([6] * self._rank + [2]))
            x = self._layers.Concatenate()([x, self.block(inputs[1], 3)])
        for step in steps:
            x = getattr(self, step)(x)
        outputs = [self._layers.Dense(5, name="logits")(self.layer("GlobalAveragePooling")()(x))]
        if self._draw(st.booleans()):
            outputs.append(self.layer("Conv")(2, 1, name="map")(self.block(x, 3)))
        return keras.Model(inputs, outputs)

    def block(self, x, width):
        size, padding = self._draw(st.sampled_from([1, 3])), "same"
        kinds = [lambda: self.layer("Conv")(width, size, padding=padding, use_bias=self._draw(st.booleans()))]
        if self._rank == 2:
            kinds.append(lambda: self._layers.Conv2DTranspose(width, size, padding=padding))
        x = self._draw(st.sampled_from(kinds))()(x)
        if self._draw(st.booleans()):
            x = self._layers.BatchNormalization()(x)
        return self._layers.Activation(self._draw(st.sampled_from(ACTIVATIONS)))(x)

    def pool(self, x):
        kind = self._draw(st.sampled_from(["MaxPooling", "AveragePooling"]))
        return self.layer("UpSampling")(2)(self.layer(kind)(2, padding="same")(x))

    def bridge(self, x):
        """Down, through a convolution, up again, and beside what was there, as in a U-Net."""
        y = self.conv(self.layer("MaxPooling")(2, padding="same")(x))
        y = self.layer("UpSampling")(2)(y)
        if self._rank == 2:
            y = self._layers.Conv2DTranspose(3, 2, padding="same")(y)
        return self._layers.Concatenate()([y, x])

    def normalize(self, x):
        kind = self._draw(st.sampled_from([self._layers.LayerNormalization, self._layers.GroupNormalization]))
        return kind(**({"groups": 1} if kind is self._layers.GroupNormalization else {}))(x)

    def expand(self, x):
        """An expanded width between two dense layers, as in ConvNeXt."""
        y = self._layers.Dense(6, activation=self._draw(st.sampled_from(["gelu", "softmax"])))(self.normalize(x))
        return self._layers.Add()([x, LayerScale(0.5, x.shape[-1])(self._layers.Dense(x.shape[-1])(y))])

    def slope(self, x):
        """A slope for each channel, or one for all."""
        num_shared = self._rank + self._draw(st.integers(0, 1))
        return self._layers.PReLU(shared_axes=list(range(1, num_shared + 1)))(self.conv(x))

    def function(self, x):
        return tf.concat([x, 1.0 - self.conv(x)], -1)


@pytest.mark.parametrize("residual_groups", [False, True])
@settings(max_examples=6)
@given(st.data(), st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), st.integers(0, 1000))
def test_a_merge_with_random_dead_channels_gives_equal_outputs(residual_groups, data, steps, seed):
    check(Network(data.draw), residual_groups, steps, seed)


@pytest.mark.parametrize("rank, residual_groups", [(1, False), (2, True), (2, False), (3, True)])
@settings(max_examples=4)
@given(st.data(), st.lists(st.sampled_from(OTHER_STEPS), min_size=1, max_size=3), st.integers(0, 1000))
def test_so_does_one_of_signals_images_or_volumes_with_several_inputs_and_heads(
    rank, residual_groups, data, steps, seed
):
    check(OtherNetwork(data.draw, rank), residual_groups, steps, seed)


def check(network, residual_groups, steps, seed):
    keras.backend.clear_session()
    model = network.build(steps)
    randomise(model, seed)
    try:
        graph = resrep_dist.trace(model, residual_groups=residual_groups)
    except ModelError:
        assume(False)
    assume(graph.groups)
    pruned = with_dead_channels(model, graph, 0.5, seed)
    random = np.random.default_rng(seed)
    images = [random.normal(size=(16, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]
    slim, certificate = resrep_dist.merge(pruned, graph, images if len(images) > 1 else images[0])
    outputs = [tf.nest.flatten(each.predict(images, verbose=0)) for each in (pruned, slim)]
    for before, after in zip(*outputs, strict=True):
        np.testing.assert_allclose(after, before, atol=2e-5 * max(1.0, np.abs(before).max()))
    kept = [entry["kept"] for entry in certificate.channels.values()]
    slim_graph = resrep_dist.trace(slim, residual_groups=residual_groups)
    assert slim_graph.macs.total(slim_graph.widths) == graph.macs.total(kept)
