"""ConvNeXt: expanded widths between two 1x1 layers without a batch norm, LayerScale, stochastic depth."""

import resrep_dist
from resrep_dist.graph import flatten, trace
from resrep_dist.graph.application_layers import LayerScale, StochasticDepth
from resrep_dist.merging.keras3 import compare_in_keras3
from resrep_dist.merging.stock import with_stock_layers
from resrep_dist.models.files import load_model
from resrep_dist.pruning.deadness import kill_channels
from resrep_dist.shrinking.early_merge import merged
from resrep_dist.shrinking.surgery import without_channels
from resrep_dist.training.trainer import Trainer
from tests.networks import random_source, randomise, small_config, with_dead_channels

import numpy as np
import pytest
import tf_keras.src.applications.convnext as convnext
from tensorflow import keras

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)


def small_convnext():
    model = convnext.ConvNeXt(
        [1, 1, 1, 1], [4, 6, 6, 8], drop_path_rate=0.2, layer_scale_init_value=0.5, weights=None, classes=10,
        input_shape=(32, 32, 3), classifier_activation=None, model_name="cn",
    )  # fmt: skip
    randomise(model)
    return model


@pytest.fixture(scope="module")
def pruned():
    keras.utils.set_random_seed(0)
    model = small_convnext()
    graph = trace(model)
    trained = with_dead_channels(model, graph)
    return model, graph, trained, *resrep_dist.merge(trained, graph, IMAGES)


def test_the_expanded_width_of_every_block_is_prunable_and_the_rest_has_its_reason(pruned):
    _, graph, *_ = pruned
    assert [group.name for group in graph.groups] == [f"cn_stage_{i}_block_0_pointwise_conv_1" for i in range(4)]
    assert graph.widths == [16, 24, 24, 32]
    reason = "a LayerNormalization, whose mean and variance a channel that is zero changes too"
    assert graph.refused["cn_stem_conv"] == f"its channels reach cn_stem_layernorm, {reason}"


def test_the_slim_model_is_of_stock_layers_with_equal_outputs(pruned):
    model, graph, trained, slim, certificate = pruned
    assert certificate.max_relative_difference < 1e-5
    assert not any(isinstance(layer, LayerScale | StochasticDepth) for layer in slim.layers)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert sum(kept) < sum(graph.widths)
    of_slim = trace(slim)
    assert of_slim.macs.total(of_slim.widths) == graph.macs.total(kept)
    # The factors are in the layer before.
    old, new = (each.get_layer("cn_stage_1_block_0_pointwise_conv_2") for each in (trained, slim))
    gamma = trained.get_layer("cn_stage_1_block_0_layer_scale").gamma.numpy()
    np.testing.assert_allclose(new.bias.numpy(), old.bias.numpy() * gamma, atol=1e-6)


def test_the_slim_file_is_read_here_and_by_keras_3(tmp_path, pruned):
    *_, trained, slim, _ = pruned
    resrep_dist.save_model(slim, tmp_path / "slim.h5")
    np.testing.assert_allclose(load_model(tmp_path / "slim.h5")(IMAGES), trained(IMAGES), atol=1e-4)
    assert compare_in_keras3(trained, tmp_path / "slim.h5", IMAGES).max_relative_difference < 1e-5


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_a_file_of_the_base_is_read_here(tmp_path, pruned, name):
    model = pruned[0]
    flat = flatten(model)
    flat.save(tmp_path / name)
    np.testing.assert_allclose(load_model(tmp_path / name)(IMAGES), model(IMAGES), atol=1e-5)


def test_a_model_in_training_shrinks_and_is_merged(pruned):
    _, graph, trained, *_ = pruned
    dead = [trained.get_layer(group.layers[0].compactor).mask.numpy() == 0 for group in graph.groups]
    narrow = without_channels(trained, graph, dead)
    np.testing.assert_allclose(narrow(IMAGES), trained(IMAGES), atol=1e-4)
    np.testing.assert_allclose(merged(narrow, graph)(IMAGES), trained(IMAGES), atol=1e-3)


def block(x, scale):
    """A block without a layer normalization, whose residual width is prunable too."""
    y = layers.Conv2D(8, 3, padding="same", groups=8, use_bias=False)(x)
    y = layers.Conv2D(24, 1, activation="gelu")(y)
    return x + scale(layers.Conv2D(8, 1, use_bias=False)(y))


class Copied(keras.layers.Layer):
    def __init__(self, init_values, dim, **kwargs):
        super().__init__(**kwargs)
        self.init_values, self.dim = init_values, dim

    def build(self, input_shape):
        self.gamma = self.add_weight("gamma", [self.dim], initializer=keras.initializers.Constant(self.init_values))

    def call(self, inputs):
        return inputs * self.gamma

    def get_config(self):
        return {**super().get_config(), "init_values": self.init_values, "dim": self.dim}


# As in the many repositories that have a copy of Keras' layer with other arguments.
CopiedLayerScale = type("LayerScale", (Copied,), {})
OtherLayerScale = type("LayerScale", (Copied,), {"call": lambda self, inputs: inputs * (1.0 + self.gamma)})


@pytest.mark.parametrize("make", [lambda: LayerScale(0.3, 8), lambda: CopiedLayerScale(0.3, 8)])
def test_a_residual_width_with_layer_scale_and_a_depthwise_convolution_by_groups_is_pruned(make):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([32, 32, 3])
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(8, 4, 4, name="stem")(inputs))
    x = block(block(x, make()), make())
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    graph = trace(model, residual_groups=True)
    assert graph.widths == [8, 24, 24] and not graph.refused
    trained = with_dead_channels(model, graph)
    slim, certificate = resrep_dist.merge(trained, graph, IMAGES)
    assert certificate.max_relative_difference < 1e-5
    assert slim.get_layer("stem").filters == certificate.channels["stem"]["kept"] < 8
    assert not any(isinstance(layer, Copied | LayerScale) for layer in slim.layers)
    of_slim = trace(slim)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert of_slim.macs.total(of_slim.widths) == graph.macs.total(kept)


def test_a_layer_that_has_only_the_name_of_layer_scale_stays():
    inputs = keras.Input([32, 32, 3])
    x = layers.Conv2D(8, 3, name="before")(inputs)
    x = layers.Conv2D(8, 3, name="conv")(OtherLayerScale(0.3, 8, name="other")(x))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    assert trace(model).refused == {"before": "its channels reach other, a LayerScale"}


def test_a_layer_scale_behind_something_else_becomes_a_rescaling():
    inputs = keras.Input([32, 32, 3])
    x = layers.ReLU()(layers.Conv2D(8, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalMaxPooling2D()(LayerScale(0.3, 8, name="scale")(x))))
    randomise(model)
    stock = with_stock_layers(flatten(model))
    assert isinstance(stock.get_layer("scale"), layers.Rescaling)
    np.testing.assert_allclose(stock(IMAGES), model(IMAGES), atol=1e-5)
    assert with_stock_layers(stock) is stock


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_a_dense_layer_on_the_last_axis_of_any_tensor_is_pruned(num_axes):
    """The expanded width of a transformer's block, of a signal's or a volume's."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([4] * num_axes + [6])
    for index in range(2):
        y = layers.Dense(24, activation="gelu", name=f"wide{index}")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(6)(layers.Dropout(0.1)(y))])
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    randomise(model)
    graph = trace(model)
    assert [group.name for group in graph.groups] == ["wide0", "wide1"]
    trained = with_dead_channels(model, graph)
    values = np.random.default_rng(0).normal(size=(8, *inputs.shape[1:])).astype(np.float32)
    slim, certificate = resrep_dist.merge(trained, graph, values)
    assert certificate.max_relative_difference < 1e-5
    of_slim = trace(slim)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert of_slim.macs.total(of_slim.widths) == graph.macs.total(kept) < graph.macs.total(graph.widths)


def test_it_is_trained_and_merged():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([16, 16, 3])
    x = layers.Conv2D(4, 4, 4)(x)
    y = layers.LayerNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
    y = layers.Dense(4)(layers.Dense(16, activation="gelu", name="wide")(y))
    x = x + LayerScale(0.5, 4)(y)
    model = keras.Model(inputs, layers.Dense(10)(layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x))))
    graph = trace(model)
    config = small_config(data={"source": "arrays"}, prune={"target_macs_fraction": 0.8})
    trainer = Trainer(model, graph, config, random_source(), random_source(64))
    trainer.start()
    before = trainer.model.get_layer("wide_compactor").kernel.numpy()
    trainer.train_until(3)
    assert not np.array_equal(trainer.model.get_layer("wide_compactor").kernel.numpy(), before)
    kill_channels(trainer.model, graph, [np.arange(16) % 2 == 0])
    slim, certificate = resrep_dist.merge(trainer.model, graph, random_source(64).images)
    assert certificate.max_relative_difference < 1e-5 and slim.get_layer("wide").units == 8
