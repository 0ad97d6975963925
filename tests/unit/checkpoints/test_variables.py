"""Names of variables in checkpoints, where Keras gives several the same one."""

from resrep_dist.checkpoints.average import WeightAverage
from resrep_dist.checkpoints.files import CheckpointFolder, snapshot
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.checkpoints.variables import batch_norm_statistics, model_variables
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.shrinking.surgery import narrow_velocities

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


class Scale(layers.Layer):
    """Has three weights, of which two have no name."""

    def build(self, shape):
        self.factor = self.add_weight(shape=[shape[-1]], initializer="ones")
        self.named = self.add_weight(name="named", shape=[])
        self.offset = self.add_weight(shape=[shape[-1]], initializer="zeros")

    def call(self, inputs):
        return inputs * self.factor + self.offset + self.named


@pytest.fixture
def model_and_graph():
    x = inputs = keras.Input([8, 8, 3])
    x = layers.ReLU()(layers.Conv2D(4, 3, name="a")(x))
    x = layers.Conv2D(4, 3, name="b")(Scale(name="scale")(layers.Conv2D(5, 3, name="c")(x)))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    graph = trace(model)
    return insert_compactors(model, graph), graph


def test_repeated_names_are_numbered_and_others_are_as_keras_gives_them(model_and_graph):
    model, _ = model_and_graph
    scale, names = model.get_layer("scale"), model_variables(model)
    assert names["scale/Variable"] is scale.factor and names["scale/Variable_1"] is scale.offset
    assert names.keys() - {"scale/Variable_1"} == {variable.name.removesuffix(":0") for variable in model.weights}


def test_older_and_synchronized_batch_norms_have_statistics_as_well():
    kinds = layers.BatchNormalization, tf.compat.v1.keras.layers.BatchNormalization
    x = inputs = keras.Input([8, 8, 3])
    for kind in (*kinds, layers.experimental.SyncBatchNormalization):
        x = kind()(x)
    model = keras.Model(inputs, x)
    assert {v.ref() for v in batch_norm_statistics(model)} == {v.ref() for v in model.non_trainable_weights}


def test_each_of_them_has_its_velocity_average_and_array(model_and_graph, tmp_path):
    model, graph = model_and_graph
    state = TrainState(model, ResRepOptimizer(0.0), average=WeightAverage(model, 0.9))
    for number, variable in enumerate(state.values()):
        variable.assign(np.full(variable.shape, number))
    saved, folder = snapshot(state), CheckpointFolder(tmp_path, 1)
    assert len(saved) == len(model.weights) + 2 * len(model.trainable_weights) + 1
    folder.save(1, saved, {"num_chosen": 0})
    for variable in state.values():
        variable.assign(np.zeros(variable.shape))
    folder.restore_newest(state)
    for name, expected in saved.items():
        np.testing.assert_array_equal(state[name], expected)
    none = [np.zeros(group.width, bool) for group in graph.groups]
    narrow = narrow_velocities(model, graph, none, state.velocities)
    for name in ("scale/Variable", "scale/Variable_1"):
        np.testing.assert_array_equal(narrow[name], saved[f"velocity/{name}"])
