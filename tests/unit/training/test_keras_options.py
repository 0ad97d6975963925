"""Constraints and regularizers of layers: applied where Keras would, in the step and in `fit`."""

import resrep_dist
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.graph import flatten, trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.step import TrainStep
from resrep_dist.training.trainer import Trainer
from tests.networks import random_source, shrinking_config, with_dead_channels

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
CLUSTER = Cluster()


def constrained_network(**options):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([16, 16, 3])
    limit = keras.constraints.MaxNorm(0.5, axis=[0, 1, 2])
    for width in (8, 12):
        x = layers.Conv2D(width, 3, 2, kernel_constraint=limit, name=f"conv{width}")(x)
        x = layers.BatchNormalization(gamma_constraint="non_neg", name=f"bn{width}")(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    limit = keras.constraints.UnitNorm(axis=0)
    return keras.Model(inputs, layers.Dense(10, kernel_constraint=limit, name="logits", **options)(x))


def assert_constrained(model):
    for name in ("conv8", "conv12"):
        norms = np.linalg.norm(model.get_layer(name).kernel.numpy().reshape(-1, model.get_layer(name).filters), axis=0)
        assert norms.max() <= 0.5 + 1e-5, name
    np.testing.assert_allclose(np.linalg.norm(model.get_layer("logits").kernel.numpy(), axis=0), 1.0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_constraints_hold_after_each_step_and_are_gone_from_the_folded_layers(precision):
    base = constrained_network()
    graph = trace(base)
    model = with_precision(insert_compactors(base, graph), precision)
    step = TrainStep(CLUSTER, TrainingConfig(precision=precision), 32)
    step.follow(TrainState(model, ResRepOptimizer(0.5, compactors_of(model, graph)), shared=step.variables))
    source = random_source()
    for _ in range(3):
        step.run(tf.constant(source.images[:32]), tf.constant(source.labels[:32]))
    assert_constrained(model)
    slim, certificate = resrep_dist.merge(with_dead_channels(base, graph), graph, source.images[:64])
    assert certificate.max_relative_difference < 1e-4
    assert slim.get_layer("conv12").kernel_constraint is None


def test_constraints_hold_in_fit():
    base = constrained_network()
    graph = trace(base)
    model = insert_compactors(base, graph)
    model.compile(ResRepOptimizer(0.5, compactors_of(model, graph)), keras.losses.SparseCategoricalCrossentropy(True))
    source = random_source()
    model.fit(source.images, source.labels, batch_size=64, epochs=1, verbose=0)
    assert_constrained(model)


def test_a_shrinking_model_with_constraints_is_refused_at_the_start():
    model = constrained_network()
    with pytest.raises(ConfigError, match="shrink.mode: received 'exact', but conv8/kernel:0 has a constraint"):
        Trainer(model, trace(model), shrinking_config(), random_source(), random_source())


ACTIVITY = {
    "built_in": lambda x, r: layers.Conv2D(4, 3, activation="relu", activity_regularizer=r)(x),
    "layer": lambda x, r: layers.Activation("relu", activity_regularizer=r)(layers.Conv2D(4, 3)(x)),
    "relu": lambda x, r: layers.ReLU(activity_regularizer=r)(layers.Conv2D(4, 3)(x)),
    "linear": lambda x, r: layers.ReLU()(layers.Conv2D(4, 3, activity_regularizer=r)(x)),
    "batch_norm": lambda x, r: layers.ReLU()(layers.BatchNormalization(activity_regularizer=r)(layers.Conv2D(4, 3)(x))),
    "dense": lambda x, r: layers.Conv2D(4, 1)(layers.Dense(4, activation="tanh", activity_regularizer=r)(x)),
    "own_layer": lambda x, r: layers.ActivityRegularization(l1=float(r.l1), l2=float(r.l2))(layers.Conv2D(4, 3)(x)),
}


def regularized(form, regularizer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, 3])
    x = ACTIVITY[form](inputs, regularizer)
    x = layers.ReLU()(layers.Conv2D(6, 3)(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("form", ACTIVITY)
def test_an_activity_regularizer_counts_what_keras_counts(form):
    model = regularized(form, keras.regularizers.L1L2(0.01, 0.02))
    images = tf.constant(np.random.default_rng(0).normal(size=(6, 8, 8, 3)), tf.float32)
    expected_outputs, expected = model(images, training=True), sum(model.losses)
    graph = trace(model)
    pruned = insert_compactors(model, graph)
    outputs = pruned(images, training=True)
    np.testing.assert_allclose(outputs, expected_outputs, atol=1e-5)
    assert float(sum(pruned.losses)) == pytest.approx(float(expected), rel=1e-5) and float(expected) > 0
    flat = flatten(model)
    flat(images, training=True)
    assert float(sum(flat.losses)) == pytest.approx(float(expected), rel=1e-5)
    assert graph.groups, "it does not keep the layers from being pruned"


def test_an_activity_regularizer_of_ones_own_behind_an_activation_is_refused():
    class Mine(keras.regularizers.Regularizer):
        def __call__(self, x):
            return tf.reduce_sum(x)

        def get_config(self):
            return {}

    with pytest.raises(ModelError, match="its activity_regularizer is a Mine, expected L1, L2 or L1L2"):
        trace(regularized("built_in", Mine()))
