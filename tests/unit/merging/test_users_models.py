"""What users' models hold that a merge must carry: other axes, vectors, several heads, types, optimizers."""

import resrep_dist
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import ModelConfig, TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ModelError
from resrep_dist.graph import flatten, trace
from resrep_dist.layers.compactor import Compactor, GroupLasso
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.models import building
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model
from resrep_dist.pruning.deadness import dead_channels
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.shrinking.surgery import removable, without_channels
from resrep_dist.training.step import TrainStep
from resrep_dist.training.trainer import Trainer
from tests.networks import classifier_with, random_source, randomise, small_config, with_dead_channels

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype(np.float32)


def merged(model):
    graph = trace(model)
    trained = with_dead_channels(model, graph)
    return graph, *resrep_dist.merge(trained, graph, IMAGES)


def test_a_batch_norm_with_the_statistics_of_the_batch_stays_and_keeps_the_layer_before_it():
    def between(x):
        x = layers.Conv2D(8, 1, name="before")(x)
        return layers.ReLU()(layers.BatchNormalization(name="live")(x, training=True))

    graph, _, certificate = merged(classifier_with(between))
    assert graph.refused["before"] == "its channels reach live, a BatchNormalization"
    assert certificate.max_relative_difference < 1e-5


@pytest.mark.parametrize("axis", [1, 2])
def test_a_batch_norm_on_another_axis_keeps_the_convolution_before_it(axis):
    def between(x):
        return layers.BatchNormalization(axis=axis, name="other")(layers.Conv2D(8, 1, name="before")(x))

    graph, _, certificate = merged(classifier_with(between))
    assert graph.refused["before"] == "its channels reach other, a BatchNormalization"
    assert [group.name for group in graph.groups] == ["conv0", "conv1"]
    assert certificate.max_relative_difference < 1e-5


VECTORS = {
    "offset": layers.Rescaling(1 / 64, offset=np.arange(8.0).tolist()),
    "scale": layers.Rescaling(np.arange(1.0, 9.0).tolist()),
    "both": layers.Rescaling(np.arange(1.0, 9.0), offset=np.arange(8.0)),
    "numpy_scalar": layers.Rescaling(np.float32(0.5), offset=np.float32(0.1)),
    "arithmetic": lambda x: (x - np.arange(8.0, dtype=np.float32)) / np.arange(1.0, 9.0, dtype=np.float32),
}


@pytest.mark.parametrize("form", VECTORS)
def test_one_number_for_each_channel_is_narrowed_with_the_channels(form):
    graph, slim, certificate = merged(classifier_with(VECTORS[form]))
    assert [group.name for group in graph.groups] == ["conv0", "conv1"]
    assert certificate.max_relative_difference < 1e-5 and slim.get_layer("conv1").filters < 8


SLOPES = {  # what follows two convolutions, and the groups: behind the offset a dead channel has a negative value
    "of_images": (lambda x: layers.PReLU(shared_axes=[1, 2, 3])(x - 0.5), ["conv0", "conv1"]),
    "of_vectors": (
        lambda x: layers.PReLU(shared_axes=[1])(layers.GlobalAveragePooling2D()(x) - 0.5), ["conv0", "conv1"],
    ),
    "of_pixels": (layers.PReLU(shared_axes=[3]), ["conv0", "conv1"]),
    "of_one_channel": (
        lambda x: layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(1, 1, name="single")(x) - 0.5),
        ["conv0", "conv1", "single"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", SLOPES)
def test_one_slope_for_all_channels_stays_when_channels_go(form):
    between, groups = SLOPES[form]
    model = classifier_with(between)
    graph = trace(model)
    assert [group.name for group in graph.groups] == groups and not graph.refused
    trained = with_dead_channels(model, graph)
    slim, certificate = resrep_dist.merge(trained, graph, IMAGES)
    assert certificate.max_relative_difference < 1e-5 and slim.get_layer("conv1").filters < 8
    np.testing.assert_allclose(slim(IMAGES), trained(IMAGES), atol=1e-4)
    # So it does in the model that is still in training.
    dead = dead_channels(trained, graph)
    going = removable(trained, graph, dead)
    np.testing.assert_array_equal(np.concatenate(going), np.concatenate(dead))
    np.testing.assert_allclose(without_channels(trained, graph, going)(IMAGES), trained(IMAGES), atol=1e-4)


def test_vectors_at_the_input_are_carried(tmp_path):
    inputs = keras.Input([16, 16, 3])
    x = layers.Rescaling(1 / 64, offset=[0.1, 0.2, 0.3])(inputs)
    x = layers.ReLU()(layers.Conv2D(8, 3, name="conv")((x - [0.4, 0.5, 0.6]) * [1.0, 2.0, 3.0]))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    graph, slim, certificate = merged(model)
    assert [group.name for group in graph.groups] == ["conv"] and certificate.max_relative_difference < 1e-5
    resrep_dist.save_model(slim, tmp_path / "slim.h5")
    again = build_model(ModelConfig(f"file:{tmp_path}/slim.h5", 10, 16))
    np.testing.assert_allclose(again(IMAGES), slim(IMAGES), atol=1e-5)


def test_several_inputs_and_heads_are_merged_and_each_output_is_compared():
    keras.utils.set_random_seed(0)
    first, second = keras.Input([16, 16, 3], name="first"), keras.Input([4], name="second")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="conv")(first)))
    pooled = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(12, 3, name="trunk")(x)))
    boxes = layers.Dense(4, name="boxes")(pooled)
    classes = layers.Dense(10, activation="sigmoid", name="classes")(layers.Concatenate()([pooled, second]))
    model = keras.Model([first, second], [classes, boxes])
    randomise(model)
    graph = trace(model)
    trained = with_dead_channels(model, graph)
    images = [IMAGES, IMAGES[:, 0, :4, 0]]
    slim, certificate = resrep_dist.merge(trained, graph, images)
    assert certificate.num_images == 64 and certificate.max_relative_difference < 1e-5
    for received, expected in zip(slim(images), trained(images), strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-4)
    slim.get_layer("boxes").bias.assign_add([0.0, 0.0, 0.0, 10.0])
    from resrep_dist.merging.certificate import certify

    assert certify(trained, slim, images, {}).max_relative_difference > 0.1, "the second output counts too"


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_models_of_another_type_are_trained_in_float32(monkeypatch, dtype):
    def build():
        keras.utils.set_random_seed(0)
        x = inputs = keras.Input([16, 16, 3], dtype=dtype)
        x = layers.Conv2D(8, 3, dtype=dtype, name="conv")(x)
        x = layers.ReLU(dtype=dtype)(layers.BatchNormalization(dtype=dtype, name="bn")(x))
        x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
        return keras.Model(inputs, layers.Dense(10, dtype=dtype)(x))

    monkeypatch.setattr(building, "_call_users_function", lambda name, config: build())
    built = build_model(ModelConfig("python:mine:build", 10, 16))
    assert {weight.dtype.name for weight in built.weights} == {"float32"} and built.inputs[0].dtype == tf.float32
    np.testing.assert_allclose(built(IMAGES), np.asarray(build()(IMAGES), np.float32), atol=1e-2)
    model, config = build(), small_config(data={"source": "arrays"})
    trainer = Trainer(model, trace(model), config, random_source(), random_source(64))
    trainer.start()
    trainer.train_until(2)
    assert all(weight.dtype == tf.float32 for weight in trainer.model.weights)


def test_a_model_of_whole_pixels_takes_scaled_ones_without_rounding():
    inputs = keras.Input([16, 16, 3], dtype="uint8")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    pixels = np.random.default_rng(0).integers(0, 256, [4, 16, 16, 3]).astype(np.uint8)
    flat = flatten(model)
    assert flat.inputs[0].dtype == tf.float32
    np.testing.assert_allclose(flat(pixels), model(pixels), atol=1e-6)
    # Keras would make 0 of them all.
    assert np.ptp(flat(pixels / 256).numpy(), axis=0).max() > 0
    words = keras.Input([5], dtype="int32")
    model = keras.Model(words, layers.Dense(2)(layers.Flatten()(layers.Embedding(9, 4)(words))))
    assert flatten(model) is model


def test_a_function_among_the_options_of_a_layer_is_refused_with_a_mend():
    inputs = keras.Input([8])
    model = keras.Model(inputs, layers.Dense(4, activation="relu", kernel_constraint=lambda w: 0.9 * w)(inputs))
    with pytest.raises(ModelError, match=r"write functions among its options \(a lambda\) as classes"):
        trace(model)


def test_a_model_that_was_compiled_with_our_optimizer_loads_and_is_not_trained_on_without_its_compactors(tmp_path):
    model = classifier_with(layers.ReLU())
    graph = trace(model)
    pruned = insert_compactors(model, graph)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 100)
    optimizer = ResRepOptimizer(schedule, compactors_of(pruned, graph), momentum=0.8, decay=1e-3, rule="paper")
    pruned.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    source = random_source()
    pruned.fit(source.images[:64], source.labels[:64], verbose=0)
    for name in ("model.h5", "model.keras"):
        pruned.save(tmp_path / name)
        loaded = keras.models.load_model(tmp_path / name)
        np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), pruned.predict(IMAGES, verbose=0), atol=1e-6)
        # Also without running code in it.
        again = load_model(tmp_path / name)
        np.testing.assert_allclose(again.predict(IMAGES, verbose=0), pruned.predict(IMAGES, verbose=0), atol=1e-6)
        assert (loaded.optimizer.momentum, loaded.optimizer.rule) == (0.8, "paper")
        assert loaded.optimizer.rate_at(50) == pytest.approx(optimizer.rate_at(50))
        # Keras makes an error of its own of it, with its text.
        with pytest.raises(Exception, match="has lost the 2 compactors that it trained"):
            loaded.fit(source.images[:64], source.labels[:64], verbose=0)


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_a_compiled_model_loads_with_a_loss_scale_and_with_a_penalty_in_its_compactors(tmp_path, name):
    inputs = keras.Input([4, 4, 3])
    model = keras.Model(inputs, Compactor(kernel_regularizer=GroupLasso(0.25))(inputs))
    model.compile(keras.mixed_precision.LossScaleOptimizer(ResRepOptimizer(0.01)), "mse")
    model.fit(np.ones([2, 4, 4, 3]), np.ones([2, 4, 4, 3]), verbose=0)
    model.save(tmp_path / name)
    loaded = keras.models.load_model(tmp_path / name)
    assert loaded.layers[1].kernel_regularizer.strength == 0.25
    assert isinstance(loaded.optimizer.inner_optimizer, ResRepOptimizer)


def test_an_optimizer_without_compactors_is_loaded_and_trains_on(tmp_path):
    model = classifier_with(layers.ReLU())
    model.compile(ResRepOptimizer(0.01), "mse")
    model.fit(IMAGES, np.zeros([64, 10]), verbose=0)
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    before = loaded.get_layer("conv0").kernel.numpy()
    loaded.fit(IMAGES, np.ones([64, 10]), verbose=0)
    assert not np.array_equal(loaded.get_layer("conv0").kernel.numpy(), before)


def test_an_images_type_does_not_change_the_step():
    model = classifier_with(layers.ReLU())
    step = TrainStep(Cluster(), TrainingConfig(), 32)
    step.follow(TrainState(model, ResRepOptimizer(0.01), shared=step.variables))
    step.run(tf.constant(IMAGES[:32]), tf.zeros([32], tf.int64))
    assert step.read_metrics()["skipped_steps"] == 0
