"""The base model as the teacher of the one that is pruned."""

import resrep_dist
from resrep_dist.config import DistillationConfig, build_config
from resrep_dist.errors import ConfigError
from resrep_dist.graph import trace
from resrep_dist.training.distillation import Teacher, make_teacher
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

SOURCE = random_source()


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_the_loss_is_that_of_the_paper():
    random = np.random.default_rng(0)
    logits, losses = random.normal(size=(8, 5)), random.uniform(size=8)
    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    images = random.normal(size=(8, 4)).astype(np.float32)
    teacher = Teacher(model, DistillationConfig(weight=0.3, temperature=2.5))
    received = teacher.taught(tf.constant(losses), tf.constant(images), tf.constant(logits)).numpy()
    wanted, given = softmax(model(images).numpy().astype(np.float64) / 2.5), softmax(logits / 2.5)
    distances = np.sum(wanted * np.log(wanted / given), axis=-1)
    np.testing.assert_allclose(received, 0.7 * losses + 0.3 * 2.5**2 * distances, rtol=1e-5)


def make_trainer(workdir=None, distillation=None, **sections):
    model = small_network()
    document = small_config(**sections).to_dict()
    document["train"]["distillation"] = distillation
    config = build_config(document)
    return model, resrep_dist.Trainer(
        model, trace(model), config, SOURCE, random_source(64, seed=1), workdir=workdir, console=None
    )


def test_a_pupil_that_is_its_teacher_learns_nothing():
    """With frozen statistics the two are equal, so only rounding and the penalty move the weights."""
    inputs = keras.Input([16, 16, 3])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))
    document = small_config(prune={"target_macs_fraction": 0.9, "lasso_strength": 1e-9}).to_dict()
    document["train"] |= {"distillation": {"weight": 1.0, "temperature": 2.0}, "weight_decay": 0.0}
    trainer = resrep_dist.Trainer(
        model, trace(model), build_config(document), SOURCE, random_source(64, seed=1), console=None
    )
    trainer.start()
    before = [weight.numpy() for weight in trainer.model.trainable_weights]
    trainer.train_until(5)
    for old, new in zip(before, trainer.model.trainable_weights, strict=True):
        np.testing.assert_allclose(new.numpy(), old, atol=1e-6)


@pytest.mark.parametrize(
    "training",
    [{"gradient_accumulation_steps": 2}, {"precision": "mixed_bfloat16"}],
)
def test_a_taught_run_trains_shrinks_and_has_no_teacher_in_its_checkpoints(tmp_path, training):
    shrink = {"mode": "merge", "num_calibration_batches": 1}
    model, trainer = make_trainer(tmp_path, {"weight": 0.5, "temperature": 4.0}, training=training, shrink=shrink)
    teacher = [weight.numpy() for weight in model.weights]
    trainer.start()
    trainer.train_until(12)
    _, untaught = make_trainer(None, None, training=training, shrink=shrink)
    assert trainer.state.keys() == untaught.state.keys()
    untaught.start()
    untaught.train_until(12)
    kernel = "conv1/kernel"
    assert np.isfinite(trainer.state[kernel].numpy()).all()
    assert not np.array_equal(trainer.state[kernel].numpy(), untaught.state[kernel].numpy())
    for old, new in zip(teacher, model.weights, strict=True):
        np.testing.assert_array_equal(new.numpy(), old)


def test_a_taught_run_resumes_bit_for_bit(tmp_path):
    options = {"distillation": {}, "checkpoint": {"interval_steps": 5}}
    _, whole = make_trainer(tmp_path, **options)
    whole.start()
    whole.train_until(5)
    whole.checkpoints.wait()
    _, resumed = make_trainer(tmp_path, **options)
    resumed.start()
    assert resumed.step == 5
    for trainer in (whole, resumed):
        trainer.train_until(9)
    for name, variable in whole.state.items():
        np.testing.assert_array_equal(resumed.state[name].numpy(), variable.numpy(), err_msg=name)


def test_what_cannot_be_taught_is_refused():
    document = small_config().to_dict()
    with pytest.raises(ConfigError, match=r"base.distillation: given, but the base model has no teacher"):
        build_config({**document, "base": {**document["base"], "distillation": {}}})
    taught = {**document, "train": {**document["train"], "distillation": {}}}
    with pytest.raises(ConfigError, match=r"train.distillation: given without the section `prune`"):
        build_config({**taught, "prune": None, "base": None})
    with pytest.raises(ConfigError, match=r"train.distillation.weight: received 1.5"):
        build_config({**taught, "train": {**taught["train"], "distillation": {"weight": 1.5}}})
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(10, "softmax")])
    with pytest.raises(ConfigError, match=r"train.distillation: the outputs of sequential.* are not the logits"):
        make_teacher(model, build_config(taught))
