"""Random small networks with random dead channels: the merged model gives the same outputs."""

import resrep_dist
from resrep_dist.errors import ModelError
from tests.networks import random_source, randomise, with_dead_channels

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tensorflow import keras

STEPS = ["conv", "conv", "conv", "depthwise", "residual", "concatenate", "pool"]
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


@pytest.mark.parametrize("residual_groups", [False, True])
@settings(max_examples=6)
@given(st.data(), st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), st.integers(0, 1000))
def test_a_merge_with_random_dead_channels_gives_equal_outputs(residual_groups, data, steps, seed):
    keras.backend.clear_session()
    model = Network(data.draw).build(steps)
    randomise(model, seed)
    try:
        graph = resrep_dist.trace(model, residual_groups=residual_groups)
    except ModelError:
        assume(False)
    assume(graph.groups)
    pruned = with_dead_channels(model, graph, 0.5, seed)
    images = random_source(16, 12, seed).images
    slim, certificate = resrep_dist.merge(pruned, graph, images)
    before, after = (each.predict(images, verbose=0) for each in (pruned, slim))
    np.testing.assert_allclose(after, before, atol=2e-5 * max(1.0, np.abs(before).max()))
    kept = [entry["kept"] for entry in certificate.channels.values()]
    slim_graph = resrep_dist.trace(slim, residual_groups=residual_groups)
    assert slim_graph.macs.total(slim_graph.widths) == graph.macs.total(kept)
