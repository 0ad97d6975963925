"""Random layers in training: their numbers follow from seed, step, position and layer."""

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.randomness import LayerRandomness
from resrep_dist.training.step import TrainStep
from resrep_dist.training.trainer import Trainer
from tests.networks import random_source, small_config

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
CLUSTER = Cluster()


class Rank:
    """A cluster as one of its ranks sees it."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def random_network(name="net"):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([16, 16, 3])
    x = layers.RandomFlip()(x)
    for width in (8, 12):
        x = layers.Conv2D(width, 3, 2)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.SpatialDropout2D(0.2)(x)
    x = layers.GaussianNoise(0.1)(layers.GlobalAveragePooling2D()(x))
    x = layers.AlphaDropout(0.1)(layers.GaussianDropout(0.1)(layers.Dropout(0.3)(x)))
    return keras.Model(inputs, layers.Dense(10)(x), name=name)


class Augment(layers.Layer):
    """Random layers inside of a layer, which Keras does not know as layers of the model."""

    def __init__(self, **options):
        super().__init__(**options)
        self.flip, self.turn, self.drop = layers.RandomFlip(), layers.RandomRotation(0.1), layers.Dropout(0.1)

    def call(self, inputs, training=None):
        return self.drop(self.turn(self.flip(inputs, training=training), training=training), training=training)


ALIKE = {
    "augment": lambda: Augment(),
    "dropout": lambda: layers.Dropout(0.5),
    "of_rows": lambda: layers.Dropout(0.5, noise_shape=(None, 1, 1, 3)),
    "spatial": lambda: layers.SpatialDropout2D(0.5),
    "alpha": lambda: layers.AlphaDropout(0.5),
    "gaussian_dropout": lambda: layers.GaussianDropout(0.5),
    "noise": lambda: layers.GaussianNoise(1.0),
    "flip": lambda: layers.RandomFlip(),
    "rotation": lambda: layers.RandomRotation(0.5),
    "translation": lambda: layers.RandomTranslation(0.5, 0.5),
    "zoom": lambda: layers.RandomZoom(0.5),
    "contrast": lambda: layers.RandomContrast(0.9),
    "crop": lambda: layers.RandomCrop(4, 4),
}


def drawn(make, step, rank, size, num_global=12, seed=3):
    """What a layer makes of the same images on a rank, and at which rows of the global batch they stand."""
    inputs = keras.Input([8, 8, 3])
    model = keras.Model(inputs, make()(inputs))
    randomness = LayerRandomness(model, seed, num_global, Rank(rank, size))
    start, end = num_global * rank // size, num_global * (rank + 1) // size
    image = tf.random.stateless_uniform([1, 8, 8, 3], [0, 1]) + 0.5

    @tf.function
    def run():
        with randomness.at(randomness.positions(tf.constant(step, tf.int64), tf.constant(end - start))):
            return model(tf.repeat(image, end - start, axis=0), training=True)

    return run().numpy()


@pytest.mark.parametrize("kind", ALIKE)
def test_ranks_draw_together_what_one_rank_draws_and_every_step_and_sample_its_own(kind):
    whole = drawn(ALIKE[kind], 5, 0, 1)
    parts = [drawn(ALIKE[kind], 5, rank, 3) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(parts[0], parts[1]), "other ranks other masks"
    assert not np.array_equal(drawn(ALIKE[kind], 6, 0, 1), whole), "other steps other masks"
    assert not np.array_equal(drawn(ALIKE[kind], 5, 0, 1, seed=4), whole), "other seeds other masks"
    assert len(np.unique(whole.reshape(12, -1), axis=0)) > 2, "other samples other masks"


def test_a_mask_that_all_samples_share_is_the_same_on_all_ranks_and_new_in_every_step():
    def make():
        return layers.Dropout(0.5, noise_shape=(1, 8, 8, 3))

    whole = drawn(make, 5, 0, 1)
    assert (whole == whole[:1]).all()
    np.testing.assert_array_equal(drawn(make, 5, 1, 3), whole[4:8])
    assert not np.array_equal(drawn(make, 6, 0, 1), whole)


def test_a_layer_that_inputs_of_different_sizes_share_draws_other_numbers_in_every_call():
    flip = layers.RandomFlip("horizontal")
    inputs = [keras.Input(shape) for shape in ([8, 8, 1], [6, 6, 1], [8, 8, 1])]
    model = keras.Model(inputs, [flip(tensor) for tensor in inputs])
    randomness = LayerRandomness(model, 0, 64, Rank(0, 1))
    images = [tf.repeat(tf.range(float(size))[tf.newaxis, :, tf.newaxis], size, 0)[tf.newaxis] for size in (8, 6, 8)]

    @tf.function
    def run():
        with randomness.at(tf.range(64, dtype=tf.int64)):
            return model([tf.repeat(image, 64, axis=0) for image in images], training=True)

    outputs = run()
    assert [tuple(output.shape[1:]) for output in outputs] == [(8, 8, 1), (6, 6, 1), (8, 8, 1)]
    flipped = [output.numpy()[:, 0, 0, 0] != 0 for output in outputs]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 0.2 < (flipped[one] != flipped[other]).mean() < 0.8
    for output, again in zip(outputs, run(), strict=True):
        np.testing.assert_array_equal(again, output)


def test_every_frame_of_a_video_has_numbers_of_its_own():
    inputs = keras.Input([5, 4, 4, 1])
    model = keras.Model(inputs, layers.TimeDistributed(layers.RandomRotation(0.5))(inputs))
    image = np.arange(16.0, dtype=np.float32).reshape([4, 4, 1])

    def turned(rank, size):
        randomness, num_samples = LayerRandomness(model, 0, 6, Rank(rank, size)), tf.constant(6 // size)
        with randomness.at(randomness.positions(tf.constant(3, tf.int64), num_samples)):
            return model(tf.broadcast_to(image, [6 // size, 5, 4, 4, 1]), training=True).numpy()

    whole = turned(0, 1)
    assert len(np.unique(whole.reshape([30, -1]), axis=0)) > 25
    np.testing.assert_array_equal(np.concatenate([turned(0, 2), turned(1, 2)]), whole)


def test_a_batch_without_samples_passes_a_random_layer():
    inputs = keras.Input([4, 4, 1])
    model = keras.Model(inputs, layers.RandomRotation(0.5)(inputs))
    randomness = LayerRandomness(model, 0, 2, Rank(1, 3))

    @tf.function
    def turned(images):
        with randomness.at(randomness.positions(tf.constant(0, tf.int64), tf.shape(images)[0])):
            return model(images, training=True)

    assert turned(tf.zeros([0, 4, 4, 1])).shape == (0, 4, 4, 1)


def test_two_layers_draw_different_numbers_of_the_right_distribution():
    inputs = keras.Input([4000])
    outputs = [layer(inputs) for layer in (layers.Dropout(0.3), layers.Dropout(0.3), layers.GaussianNoise(2.0))]
    model = keras.Model(inputs, outputs)
    randomness = LayerRandomness(model, 0, 8, Rank(0, 1))
    with randomness.at(tf.range(8, dtype=tf.int64)):
        first, second, noise = (output.numpy() for output in model(tf.ones([8, 4000]), training=True))
    kept = [(first != 0).mean(), (second != 0).mean(), ((first != 0) & (second != 0)).mean()]
    np.testing.assert_allclose(kept, [0.7, 0.7, 0.49], atol=0.01)
    np.testing.assert_allclose(np.unique(first), [0.0, 1 / 0.7], rtol=1e-6)
    noise = (noise - 1.0) / 2.0
    moments = [noise.mean(), noise.var(), (noise**3).mean(), (noise**4).mean()]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.1)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_outside_of_training_steps_layers_draw_as_keras_does():
    model = random_network()
    LayerRandomness(model, 0, 8, Rank(0, 1))
    images = tf.ones([2, 16, 16, 3])
    np.testing.assert_array_equal(model(images, training=False), model(images, training=False))
    assert not np.array_equal(model(images, training=True), model(images, training=True))


def test_a_resumed_run_is_an_undisturbed_run_bit_for_bit(tmp_path):
    tf.config.experimental.enable_op_determinism()
    config = small_config(checkpoint={"interval_steps": 3}, data={"source": "arrays"})
    states = []
    for workdir, stops in ((None, [6]), (tmp_path / "run", [3, 6])):
        for number, stop in enumerate(stops):
            # Names, and the numbers that Keras draws, depend on what the process has done before.
            model = random_network()
            tf.random.uniform([7 + number])
            trainer = Trainer(model, trace(model), config, random_source(), random_source(), workdir=workdir)
            trainer.start()
            trainer.train_until(stop)
            trainer.checkpoints.wait()
        states.append([variable.numpy() for variable in trainer.state.values()])
    assert len(states[0]) == len(states[1])
    for expected, received in zip(*states, strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("options", [{}, {"precision": "mixed_bfloat16"}, {"xla": True}])
def test_accumulated_parts_draw_what_the_whole_batch_draws(options):
    losses = []
    for num_parts in (1, 3):
        inputs = keras.Input([16, 16, 3])
        outputs = layers.Dropout(0.5)(layers.Dense(10, kernel_initializer="ones")(layers.Flatten()(inputs)))
        config = TrainingConfig(gradient_accumulation_steps=num_parts, **options)
        model = keras.Model(inputs, outputs)
        step = TrainStep(CLUSTER, config, 30, seed=1)
        step.follow(TrainState(model, ResRepOptimizer(0.0), shared=step.variables))
        source = random_source()
        for _ in range(2):
            step.run(tf.constant(source.images[:30]), tf.constant(source.labels[:30]))
        losses.append(step.read_metrics()["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
