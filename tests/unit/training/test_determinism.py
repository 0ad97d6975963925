"""Deterministic operations: who asks for them, and what a GPU cannot do with them."""

import os

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed import cluster as cluster_module
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.determinism import enable_determinism
from resrep_dist.training.step import TrainStep
from resrep_dist.training.trainer import Trainer
from tests.networks import random_source, small_config, small_network

import pytest
import tensorflow as tf
from tensorflow import keras
from tensorflow.python.framework.config import disable_op_determinism, is_op_determinism_enabled


@pytest.fixture
def free():
    """As in a program that has asked for nothing."""
    disable_op_determinism()
    yield
    disable_op_determinism()


def network():
    layers = keras.layers
    x = inputs = keras.Input([8, 8, 3])
    x = layers.BatchNormalization(name="free")(layers.Conv2D(4, 3, name="conv")(x))
    x = layers.BatchNormalization(name="frozen", trainable=False)(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.UpSampling2D(name="nearest")(x))
    x = layers.UpSampling2D(interpolation="bilinear", name="bilinear")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def step_of(model, **training):
    step = TrainStep(Cluster(), TrainingConfig(**training), 4)
    step.follow(TrainState(model, ResRepOptimizer(0.1), shared=step.variables))
    return step


def on_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU:0"])


BATCH = tf.ones([4, 8, 8, 3]), tf.constant([0, 1, 2, 3], tf.int64)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_layers_without_a_deterministic_operation_on_a_gpu_are_named_before_the_first_step(monkeypatch, num_parts):
    on_a_gpu(monkeypatch)
    model = network()
    step = step_of(model, gradient_accumulation_steps=num_parts)
    before = model.get_layer("conv").kernel.numpy()
    with pytest.raises(ConfigError, match="training.deterministic: received true, but on a GPU") as caught:
        step.run(*BATCH)
    message = str(caught.value)
    for part in ("frozen (frozen batch norm)", "nearest (nearest-neighbor upsampling)"):
        assert part in message, message
    assert not any(part in message for part in ("free (", "bilinear (", "conv (", "depthwise (", "more")), message
    assert (model.get_layer("conv").kernel.numpy() == before).all()


@pytest.mark.parametrize(
    "layer, key",
    [(keras.layers.MaxPooling2D(), "deterministic"), (keras.layers.UpSampling2D(interpolation="bicubic"), "xla")],
)
def test_what_xla_refuses_is_said_in_one_line_by_the_setting_that_asks_for_it(free, layer, key):
    tf.config.experimental.enable_op_determinism()
    inputs = keras.Input([8, 8, 3])
    x = layer(keras.layers.Conv2D(4, 3)(inputs))
    step = step_of(keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))), xla=True)
    with pytest.raises(ConfigError, match=f"training.{key}: received true, but TensorFlow says: ") as caught:
        step.run(*BATCH)
    assert str(caught.value).endswith(f"set training.{key} to false") and "\n" not in str(caught.value)


def test_they_are_trained_without_determinism_and_on_a_cpu(monkeypatch):
    step_of(network()).run(*BATCH)
    on_a_gpu(monkeypatch)
    step_of(network(), deterministic=False).run(*BATCH)
    # Nothing is wrong with the usual layers.
    images, labels = random_source(4).images, tf.constant([0, 1, 2, 3], tf.int64)
    step_of(small_network()).run(tf.constant(images), labels)


def test_a_trainer_in_a_program_asks_for_it_as_the_command_does(free):
    for is_asked in (False, True):
        config = small_config(training={"deterministic": is_asked})
        Trainer(small_network(), None, config, random_source(), random_source(64))
        assert is_op_determinism_enabled() == is_asked


def test_random_operations_have_a_seed_then_the_programs_own_if_it_has_one(free):
    for of_program, expected in ((None, 7), (5, 5)):
        tf.random.set_seed(of_program)
        enable_determinism(TrainingConfig(), 7)
        tf.random.normal([1])  # raises an error without a seed
        assert tf.compat.v1.random.get_seed(0)[0] == expected


@pytest.mark.parametrize("deterministic, before, expected", [(True, None, "0"), (False, None, None), (True, "1", "1")])
def test_nccl_adds_in_one_order_before_horovod_starts_unless_the_user_says_otherwise(
    monkeypatch, deterministic, before, expected
):
    found = []
    monkeypatch.setattr(Cluster, "_start_horovod", lambda self: found.append(os.environ.get("NCCL_NVLS_ENABLE")))
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    # Set first, so that the environment is as before after the test.
    monkeypatch.setenv("NCCL_NVLS_ENABLE", before or "")
    if before is None:
        monkeypatch.delenv("NCCL_NVLS_ENABLE")
    Cluster(deterministic)
    assert found == [expected]


@pytest.mark.parametrize("gpus, before, expected", [(["one"], None, "1"), ([], None, None), (["one"], "0", "0")])
def test_only_a_gpu_waits_for_sums_by_itself_unless_the_user_says_otherwise(monkeypatch, gpus, before, expected):
    found, name = [], "HOROVOD_ENABLE_ASYNC_COMPLETION"
    monkeypatch.setattr(Cluster, "_start_horovod", lambda self: found.append(os.environ.get(name)))
    monkeypatch.setattr(cluster_module, "limit_threads_and_pin_gpu", lambda *_: None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    # Set first, so that the environment is as before after the test.
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)
    Cluster()
    assert found == [expected]
