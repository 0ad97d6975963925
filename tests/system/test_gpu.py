"""What needs a GPU: `bash launch/test.sh -m gpu`."""

import json

import resrep_dist
from resrep_dist.cli.main import main
from resrep_dist.layers.insertion import has_compactors
from tests.networks import random_source, shrinking_config, small_config, small_network
from tests.ranks.launcher import run_ranks
from tests.system.runs import train_command

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

GPUS = tf.config.list_physical_devices("GPU")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="TensorFlow sees no GPU here")]


def train_on(device, mode="exact", num_steps=150, **training):
    """A run in which channels are masked, die and leave the model."""
    with tf.device(device):
        model = small_network()
        sources = random_source(), random_source(64, seed=1)
        trainer = resrep_dist.Trainer(model, resrep_dist.trace(model), shrinking_config(mode, **training), *sources)
        trainer.start()
        trainer.train_until(num_steps)
    return trainer


def test_a_gpu_trains_as_the_cpu_does():
    # Few steps: rounding grows with each.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        gpu, cpu = (train_on(device, mode="off", num_steps=20) for device in ("/GPU:0", "/CPU:0"))
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)
    for name, variable in cpu.state.items():
        np.testing.assert_allclose(gpu.state[name], variable, rtol=1e-2, atol=1e-4, err_msg=name)
    assert any("GPU" in variable.device for variable in gpu.model.trainable_variables)


@pytest.mark.parametrize("training", [{}, {"precision": "mixed_float16"}, {"xla": True}])
def test_a_model_shrinks_on_a_gpu_and_its_slim_one_gives_the_same(training):
    trainer = train_on("/GPU:0", **training)
    assert sum(trainer.pruner.living_widths()) < sum(trainer.graph.widths)
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, random_source(64, seed=1).images)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert kept == trainer.pruner.living_widths() and slim.count_params() < trainer.model.count_params()


def test_a_run_is_merged_on_a_gpu_and_two_runs_end_with_the_same_bits():
    one, other = (train_on("/GPU:0", mode="merge") for _ in range(2))
    assert not has_compactors(one.model) and 0 < one.state.early_merge["step"] < 150
    # Without the 10 bits to which a GPU rounds inputs in training.
    assert one.state.early_merge["certificate"]["max_relative_difference"] < 1e-5
    assert one.state.keys() == other.state.keys()
    for name, variable in one.state.items():
        np.testing.assert_array_equal(variable.numpy(), other.state[name].numpy(), err_msg=name)


def test_a_table_of_times_names_the_gpu(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(small_config(model={"name": "python:tests.networks:small_classifier"}).to_yaml())
    assert main(["measure", str(path), "--runtime", "keras", "--output", str(tmp_path / "costs.json")]) == 0
    machine = json.loads((tmp_path / "costs.json").read_text())["machine"]
    assert machine["processor"] and machine["gpu"] == tf.config.experimental.get_device_details(GPUS[0])["device_name"]


def test_batches_are_on_the_gpu_and_a_bad_one_changes_nothing():
    trainer = train_on("/GPU:0", mode="off", num_steps=5)
    trainer._live.step.read_metrics()
    images, labels = next(iter(trainer._batches))
    assert "GPU" in images.device and "GPU" in labels.device
    before = {name: variable.numpy() for name, variable in trainer.state.items()}
    trainer._live.step.run(images * np.nan, labels)
    assert trainer._live.step.read_metrics()["skipped_steps"] == 1
    for name in before.keys() - {"iterations"}:
        np.testing.assert_array_equal(trainer.state[name], before[name], err_msg=name)


def test_more_ranks_than_gpus_are_refused_in_one_line(tmp_path):
    num_ranks = len(GPUS) + 1
    # measure.sh lets ranks share a GPU.
    command = train_command(tmp_path / "run")
    code, log = run_ranks(num_ranks, command, tmp_path / "log", NCCL_MULTI_RANK_GPU_ENABLE="0")
    assert code != 0 and log.count(f"{num_ranks} ranks but {len(GPUS)} GPUs") == 1, log


IMAGES, VOLUMES = [2, 8, 8, 4], [2, 8, 8, 8, 4]
NOT_DETERMINISTIC = {
    "frozen batch norm": lambda x: tf.compat.v1.nn.fused_batch_norm(x, *tf.ones([4, 4]), is_training=False)[0],
    "nearest-neighbor upsampling": keras.layers.UpSampling2D(),
    "dilation": lambda x: tf.nn.dilation2d(x, tf.zeros([3, 3, 4]), [1] * 4, "SAME", "NHWC", [1] * 4),
    "change of contrast": lambda x: x + tf.image.adjust_contrast(tf.stop_gradient(x), 2.0),
    "bincount": lambda x: x + tf.cast(tf.math.bincount(tf.zeros([8], tf.int32), minlength=4), tf.float32),
    "crop and resize": lambda x: tf.image.crop_and_resize(x, [[0.0, 0.0, 0.5, 0.5]], [0], [4, 4]),
}
DETERMINISTIC = {
    "batch norm": (keras.layers.BatchNormalization(), IMAGES),
    "convolution": (keras.layers.Conv2D(4, 3, strides=2), IMAGES),
    "dilated convolution": (keras.layers.Conv2D(4, 3, dilation_rate=2), IMAGES),
    "grouped convolution": (keras.layers.Conv2D(4, 3, groups=2), IMAGES),
    "depthwise convolution": (keras.layers.DepthwiseConv2D(3), IMAGES),
    "large depthwise convolution": (keras.layers.DepthwiseConv2D(7, padding="same"), IMAGES),
    "transposed convolution": (keras.layers.Conv2DTranspose(4, 3, strides=2), IMAGES),
    "convolution of volumes": (keras.layers.Conv3D(4, 3), VOLUMES),
    "bilinear upsampling": (keras.layers.UpSampling2D(interpolation="bilinear"), IMAGES),
    "maximum": (keras.layers.MaxPooling2D(3, 2, "same"), IMAGES),
    "maximum of volumes": (keras.layers.MaxPooling3D(2), VOLUMES),
    "average": (keras.layers.AveragePooling2D(3, 2, "same"), IMAGES),
    "maximum of all": (keras.layers.GlobalMaxPooling2D(), IMAGES),
    "layer normalization": (keras.layers.LayerNormalization(), IMAGES),
    "padding": (keras.layers.ZeroPadding2D(), IMAGES),
    "PReLU": (keras.layers.PReLU(shared_axes=[1, 2]), IMAGES),
}


def gradients(function, shape):
    x = tf.Variable(np.random.default_rng(0).normal(size=shape), dtype=tf.float32)
    with tf.device("/GPU:0"), tf.GradientTape() as tape:
        y = function(x, training=True) if isinstance(function, keras.layers.Layer) else function(x)
        y = tf.reduce_sum(y * y)
    variables = [x, *getattr(function, "trainable_variables", [])]
    return [gradient.numpy() for gradient in tape.gradient(y, variables)]


@pytest.fixture(scope="module")
def determinism():
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()


@pytest.mark.usefixtures("determinism")
@pytest.mark.parametrize("name", NOT_DETERMINISTIC)
def test_what_is_refused_has_no_deterministic_operation(name):
    with pytest.raises(tf.errors.UnimplementedError):
        gradients(NOT_DETERMINISTIC[name], IMAGES)


@pytest.mark.usefixtures("determinism")
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_is_not_refused_gives_the_same_bits(name):
    function, shape = DETERMINISTIC[name]
    first = gradients(function, shape)
    for _ in range(3):
        for one, other in zip(first, gradients(function, shape), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(len(GPUS) < 2, reason="one GPU cannot be shared by two ranks")
def test_ranks_with_a_gpu_each_end_with_one_model(tmp_path):
    # Every checkpoint comes after a comparison of all state over the ranks.
    code, log = run_ranks(len(GPUS), train_command(tmp_path / "run", "train.num_epochs=10"), tmp_path / "log")
    assert code == 0 and (tmp_path / "run" / "slim" / "model.h5").exists(), log
