"""What needs a GPU: `bash launch/test.sh -m gpu`."""

import resrep_dist
from tests.networks import random_source, shrinking_config, small_network
from tests.ranks.launcher import run_ranks
from tests.system.runs import train_command

import numpy as np
import pytest
import tensorflow as tf

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
    code, log = run_ranks(num_ranks, train_command(tmp_path / "run"), tmp_path / "log")
    assert code != 0 and log.count(f"{num_ranks} ranks but {len(GPUS)} GPUs") == 1, log


@pytest.mark.skipif(len(GPUS) < 2, reason="one GPU cannot be shared by two ranks")
def test_ranks_with_a_gpu_each_end_with_one_model(tmp_path):
    # Every checkpoint comes after a comparison of all state over the ranks.
    code, log = run_ranks(len(GPUS), train_command(tmp_path / "run", "train.num_epochs=10"), tmp_path / "log")
    assert code == 0 and (tmp_path / "run" / "slim" / "model.h5").exists(), log
