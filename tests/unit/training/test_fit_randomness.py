"""Random layers in Keras' `fit`: their numbers follow from seed, step, sample and layer."""

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.fit_step import replace_fit_step
from tests.fitting import fit
from tests.networks import random_source, small_config
from tests.unit.training.test_randomness import Rank, random_network

import numpy as np
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


def kinds():
    """A model of layers that draw once for a batch, for a sample, and inside of a cell."""
    inputs = keras.Input([8, 8, 3])
    x = layers.GaussianDropout(0.5)(layers.RandomRotation(0.2)(layers.RandomFlip()(inputs)))
    x = layers.Reshape([8, 24])(layers.SpatialDropout2D(0.5)(layers.GaussianNoise(1.0)(x)))
    return keras.Model(inputs, layers.LSTM(4, dropout=0.3, recurrent_dropout=0.3)(x))


def drawn(rank, size, num_steps=2, seed=3):
    """What the model makes of this rank's part of 12 equal images in each step of a fit."""
    keras.utils.set_random_seed(0)
    model, seen = kinds(), []

    def loss(labels, outputs):
        seen.append(outputs.numpy())
        return 0.0 * outputs

    model.compile(ResRepOptimizer(0.0), loss, run_eagerly=True)
    for _ in range(2):  # as by a second fit with the callbacks
        replace_fit_step(model, seed, Rank(rank, size))
    start, end = 12 * rank // size, 12 * (rank + 1) // size
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    for number in range(num_steps):
        tf.random.uniform([number])
        model.train_on_batch(np.repeat(image, end - start, axis=0), np.zeros([end - start, 4]))
    return seen


def test_ranks_draw_together_what_one_rank_draws_and_every_step_and_sample_its_own():
    whole, parts = drawn(0, 1), [drawn(rank, 3) for rank in range(3)]
    for step in range(2):
        # The gates of a small and a large matrix round differently.
        np.testing.assert_allclose(np.concatenate([part[step] for part in parts]), whole[step], atol=1e-6)
        # Some lose all of their channels.
        assert len(np.unique(np.round(whole[step], 5), axis=0)) > 6, "other samples other numbers"
    assert not np.allclose(whole[0], whole[1]), "other steps other numbers"
    assert not np.allclose(drawn(0, 1, 1, seed=4)[0], whole[0]), "other seeds other numbers"


def test_a_fit_that_is_killed_and_resumed_is_an_undisturbed_one_bit_for_bit(tmp_path):
    tf.config.experimental.enable_op_determinism()
    config, states = small_config(train={"num_epochs": 3}), []
    for folder, ends in (("whole", [20]), ("parts", [10, 20])):
        for number, end in enumerate(ends):
            tf.random.uniform([7 + number])
            masks = fit(random_network(), config, random_source(), end, Cluster(), tmp_path / folder)
        # Names depend on what the process has done before.
        states.append([(name, variable.numpy()) for name, variable in masks.state.items()])
    assert any((value == 0).any() for name, value in states[0] if name.endswith("mask"))
    for (name, expected), (_, received) in zip(*states, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=name)
