"""The pieces as a library, on one process."""

import logging
import os
import resource
import signal

import resrep_dist
from resrep_dist.errors import CheckpointWriteError, ConfigError, ModelError, StoppedError, UserError
from resrep_dist.graph import Graph
from resrep_dist.monitoring.events import drop_events_after
from resrep_dist.monitoring.hooks import Hook
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.training.evaluation import Evaluator
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event


def make_trainer(workdir=None, hooks=(), **changes):
    model = small_network()
    sources, options = (random_source(), random_source(64, seed=1)), {"workdir": workdir, "hooks": hooks}
    return resrep_dist.Trainer(model, resrep_dist.trace(model), small_config(**changes), *sources, **options)


def test_a_models_owner_prunes_it_in_a_few_lines():
    trainer = make_trainer(
        train={"num_epochs": 15},
        prune={
            "target_macs_fraction": 0.8,
            "channels_per_update": 8,
            "lasso_strength": 0.05,
            "mask_stop_fraction": 0.4,
        },
    )
    trainer.run()
    assert trainer.step >= trainer.num_steps
    assert trainer.pruner.num_masked_alive() == 0
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, random_source(64, seed=1).images)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert kept == trainer.pruner.unmasked_widths()
    assert trainer.graph.macs.total(kept) <= 0.8 * trainer.graph.macs.total(trainer.graph.widths)


class StopAt(Hook):
    """Asks a run to stop, as Ctrl-C in a notebook does."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer, metrics):
        if trainer.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_trainer_that_was_stopped_goes_on_when_it_is_run_again(tmp_path):
    changes = {"prune": {"lasso_strength": 1e-6, "max_extension_epochs": 0}, "logging": {"interval_steps": 2}}
    trainer = make_trainer(tmp_path, hooks=[StopAt(12)], **changes)
    with pytest.raises(StoppedError):
        trainer.run()
    # After an evaluation, whose curves are files of their own.
    stopped_step = trainer.step
    assert 10 < stopped_step < trainer.num_steps
    trainer.run()
    assert trainer.step == trainer.num_steps
    undisturbed = make_trainer(tmp_path / "undisturbed", **changes)
    undisturbed.run()
    for name, variable in trainer.state.items():
        np.testing.assert_array_equal(variable.numpy(), undisturbed.state[name].numpy(), err_msg=name)


def test_a_trainer_that_has_no_checkpoint_to_go_on_from_says_so():
    trainer = make_trainer(hooks=[StopAt(3)])
    with pytest.raises(StoppedError):
        trainer.run()
    with pytest.raises(UserError, match=r"step \d+: this Trainer has made steps, and there is no checkpoint"):
        trainer.run()


def test_the_extension_is_bounded_and_what_is_alive_stays():
    # So weak a penalty kills nothing.
    trainer = make_trainer(prune={"lasso_strength": 1e-6, "max_extension_epochs": 1})
    trainer.run()
    assert trainer.step == trainer.num_steps + 10
    assert trainer.pruner.num_masked_alive() > 0
    _, certificate = resrep_dist.merge(trainer.model, trainer.graph, random_source(64, seed=1).images)
    assert all(entry["kept"] == entry["original"] for entry in certificate.channels.values())


def test_the_end_is_evaluated_too_however_rare_evaluations_are():
    trainer = make_trainer(logging={"evaluation_epochs": 100}, prune={"lasso_strength": 1e-6})
    trainer.run()
    assert trainer.step > trainer.num_steps
    assert trainer.validation_top1 == Evaluator(trainer.model).top1(random_source(64, seed=1), 64)


def test_masks_change_only_in_their_time_and_by_at_most_k():
    trainer = make_trainer(prune={"target_macs_fraction": 0.06, "mask_stop_fraction": 0.5})
    trainer.start()
    chosen = []
    for step in range(5, 61, 5):
        trainer.train_until(step)
        chosen.append(trainer.pruner.num_chosen)
    assert chosen == [0, 4, 4, 8, 8, 12, 12, 12, 12, 12, 12, 12]


def test_masks_stop_in_time_for_the_last_ones_to_die():
    trainer = make_trainer(train={"num_epochs": 20}, prune={"lasso_strength": 0.05, "mask_stop_fraction": None})
    trainer.run()
    assert trainer.pruner.num_chosen > 0
    assert trainer.step == trainer.num_steps, "no extension was needed"
    assert trainer.pruner.num_masked_alive() == 0


def test_with_nothing_but_a_target_the_masks_are_complete_and_every_masked_row_dies(caplog):
    caplog.set_level(logging.INFO, "resrep_dist")
    logging.getLogger("resrep_dist").propagate = True
    document = small_config(train={"num_epochs": 20}).to_dict()
    config = resrep_dist.build_config({**document, "prune": {"target_macs_fraction": 0.4}})
    model = small_network()
    trainer = resrep_dist.Trainer(model, resrep_dist.trace(model), config, random_source(), random_source(64, seed=1))
    assert isinstance(trainer.config.prune.lasso_strength, float), "the configuration of the run has numbers"
    assert "Chosen: prune.lasso_strength" in caplog.text and "too weak" not in caplog.text
    trainer.run()
    assert trainer.step == trainer.num_steps, "no extension was needed"
    assert trainer.pruner.num_masked_alive() == 0
    assert trainer.pruner.macs_fraction(trainer.pruner.living_widths()) <= 0.4


def test_a_penalty_that_is_too_weak_to_kill_is_said_at_the_start(caplog):
    logging.getLogger("resrep_dist").propagate = True
    make_trainer(prune={"lasso_strength": 1e-6, "mask_stop_fraction": None})
    assert "The penalty is too weak for the length of the phase" in caplog.text


def test_a_checkpoint_that_cannot_be_written_is_tried_again_and_the_third_failure_ends_the_run(tmp_path, caplog):
    logging.getLogger("resrep_dist").propagate = True
    trainer = make_trainer(tmp_path, checkpoint={"interval_steps": 10})
    folder = tmp_path / "checkpoints"
    folder.write_text("a file stands where the folder should be")
    trainer.start()
    trainer.train_until(20)
    trainer.checkpoints.wait()
    assert caplog.text.count("cannot be written") == 2 and "trying again at the next interval" in caplog.text
    folder.unlink()
    trainer.train_until(30)
    trainer.checkpoints.wait()
    assert [path.name for path in folder.iterdir()] == ["step-00000030"]
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("again")
    with pytest.raises(CheckpointWriteError, match=r"step 60: 3 checkpoint\(s\) in a row could not be written"):
        trainer.train_until(70)


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_the_same(tmp_path, caplog):
    logging.getLogger("resrep_dist").propagate = True
    trainer = make_trainer(tmp_path, checkpoint={"interval_steps": 10})
    trainer.start()
    trainer.train_until(30)
    trainer.checkpoints.wait()
    expected = {name: variable.numpy() for name, variable in trainer.state.items()}
    (tmp_path / "checkpoints" / "step-00000030" / "state.npz").write_bytes(b"nothing")
    resumed = make_trainer(tmp_path, checkpoint={"interval_steps": 10})
    resumed.start()
    assert resumed.step == 20 and "going back to the checkpoint before it" in caplog.text
    resumed.train_until(30)
    for name, variable in resumed.state.items():
        np.testing.assert_array_equal(variable.numpy(), expected[name], err_msg=name)


def test_a_model_with_nothing_to_prune_and_data_of_other_classes_are_refused():
    model = small_network()
    graph = resrep_dist.trace(model)
    source = random_source()
    with pytest.raises(ModelError, match=r"no convolution can be pruned \(conv0: because\)"):
        resrep_dist.Trainer(model, Graph((), {"conv0": "because"}, graph.macs), small_config(), source, source)
    with pytest.raises(ConfigError, match="received 3, expected 10"):
        resrep_dist.Trainer(model, graph, small_config(model={"num_classes": 3}), source, source)


def test_curves_that_a_full_disk_refuses_do_not_stop_the_training(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)
    monitor = Monitor("train", tmp_path, None, 100)
    monitor.start(0)
    monitor.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses the write as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        for step in range(40):
            monitor.scalars(step, {"loss": 1.0})
            monitor.histograms(step, {"norms": np.ones(3)})
        monitor.flush()
        monitor.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("cannot be written") == 1 and str(tmp_path) in caplog.text


def test_curves_are_cut_at_the_step_of_a_checkpoint(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        for step in range(10):
            tf.summary.scalar("loss", float(step), step=step)
    writer.close()
    (path,) = tmp_path.iterdir()
    # A killed run's last record is cut short.
    path.write_bytes(path.read_bytes()[:-3])
    drop_events_after(tmp_path, 4)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([tf.make_ndarray(e.tensor_proto) for e in events.Tensors("loss")], range(5))


def test_a_start_that_dies_while_it_cuts_the_curves_does_not_harm_the_next(tmp_path, monkeypatch):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        for step in range(10):
            tf.summary.scalar("loss", float(step), step=step)
    writer.close()

    class Killed(BaseException):
        pass

    def kill(*paths):
        raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr("resrep_dist.monitoring.events.os.replace", kill)
        drop_events_after(tmp_path, 4)
    assert len(list(tmp_path.glob("*tfevents*"))) == 1, "TensorBoard would draw both"
    drop_events_after(tmp_path, 4)
    (path,) = tmp_path.glob("*tfevents*")
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    assert max(Event.FromString(record).step for record in records) == 4
