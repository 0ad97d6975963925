"""What can be known at the start is refused at the start, by name; what cannot be repeated is said."""

import logging

import resrep_dist
from resrep_dist.data.source import Source
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.training.keras_callbacks import ChannelMasks
from resrep_dist.training.trainer import Trainer
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
CONFIG = small_config(data={"source": "arrays"})


def two_ends():
    first, second = keras.Input([16, 16, 3]), keras.Input([16, 16, 3])
    x = layers.Add()([layers.Conv2D(8, 3)(first), layers.Conv2D(8, 3)(second)])
    x = layers.Conv2D(8, 3, activation="relu")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model([first, second], [layers.Dense(10)(x), layers.Dense(10)(x)])


def test_several_inputs_and_outputs_are_sent_to_fit_by_the_trainer_and_by_the_one_call():
    model, source = two_ends(), random_source(32)
    expected = "received 2 inputs and 2 outputs, expected one of each; prune it in Keras' own `fit`"
    with pytest.raises(ModelError, match=expected):
        Trainer(model, resrep_dist.trace(model), CONFIG, source, source)
    with pytest.raises(ModelError, match=expected):
        resrep_dist.prune(model, (source.images, source.labels), (source.images, source.labels))


def test_an_input_in_a_dict_is_refused_with_the_model_to_give():
    plain, source = small_network(), random_source(32)
    model = keras.Model({"image": plain.inputs[0]}, plain.outputs[0])
    with pytest.raises(ModelError, match=r"its input or output is a dict, expected a tensor; give keras\.Model\("):
        resrep_dist.prune(model, (source.images, source.labels), (source.images, source.labels))


def test_a_target_that_cannot_be_reached_is_refused_by_the_trainer_and_in_fit():
    model, source = small_network(), random_source(32)
    graph, config = resrep_dist.trace(model), small_config(data={"source": "arrays"}, prune={"min_channels": 99})
    with pytest.raises(ConfigError, match=r"prune\.target_macs_fraction: received 0\.5, expected more than 1"):
        Trainer(model, graph, config, source, source)
    pruned = resrep_dist.insert_compactors(model, graph)
    pruned.compile(resrep_dist.ResRepOptimizer(0.1, [pruned.get_layer("conv0_compactor")]), "mse")
    masks = ChannelMasks(graph, config.prune, first_step=1, last_step=10)
    with pytest.raises(ConfigError, match="so much of the multiply-adds remains with prune.min_channels 99"):
        pruned.fit(source.images, np.zeros([32, 10]), verbose=0, callbacks=[masks])


def test_validation_images_of_another_size_are_refused_before_the_first_step():
    model, source = small_network(), random_source(32)
    with pytest.raises(ConfigError, match=r"takes images of height, width and channels \(16, 16, 3\), but those of"):
        Trainer(model, resrep_dist.trace(model), CONFIG, source, random_source(8, image_size=20))
    labels = np.eye(10, dtype=np.int64)[:8]
    with pytest.raises(ConfigError, match="task: received 'classification', which needs one class for each image"):
        Trainer(model, resrep_dist.trace(model), CONFIG, Source(source.images[:8], labels, 10), source)
    with pytest.raises(ConfigError, match="but the validation labels of data.source arrays are"):
        Trainer(model, resrep_dist.trace(model), CONFIG, source, Source(source.images[:8], labels, 10))


@keras.utils.register_keras_serializable("tests_refusals")
class OwnNoise(layers.Layer):
    """Draws numbers as a user's own layer does."""

    def call(self, inputs, training=None):
        return inputs + tf.random.normal(tf.shape(inputs)) if training else inputs


def test_random_numbers_of_a_layer_of_ones_own_are_named_in_the_trainer_and_in_fit(caplog):
    inputs = keras.Input([16, 16, 3])
    x = layers.Dropout(0.1)(layers.Conv2D(8, 3, activation="relu", name="a")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu", name="b")(x))
    model, source = keras.Model(inputs, layers.Dense(10)(OwnNoise(name="own_noise")(x))), random_source(32)
    graph, expected = resrep_dist.trace(model), "Random numbers of own_noise do not follow from seed and step"
    assert [group.name for group in graph.groups] == ["a"]
    trainer = Trainer(model, None, CONFIG, source, source)
    with caplog.at_level(logging.WARNING):
        trainer.start()
        trainer.train_until(2)
    assert caplog.text.count(expected) == 1
    caplog.clear()
    pruned = resrep_dist.insert_compactors(model, graph)
    pruned.compile(resrep_dist.ResRepOptimizer(0.1, [pruned.get_layer("a_compactor")]), "mse")
    masks = ChannelMasks(graph, CONFIG.prune, first_step=1, last_step=10)
    with caplog.at_level(logging.WARNING):
        pruned.fit(source.images, np.zeros([32, 10]), epochs=2, verbose=0, callbacks=[masks])
    assert caplog.text.count(expected) == 1
