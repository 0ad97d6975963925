"""Checkpoints that are written while the training goes on, on disks that are slow or full."""

import errno
import logging
import os
import threading

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.checkpoints.writer import CheckpointWriter
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError
from resrep_dist.pruning.optimizer import ResRepOptimizer

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


class Run:
    """The state of a run and its checkpoints."""

    def __init__(self, folder):
        inputs = keras.Input([1])
        model = keras.Model(inputs, keras.layers.Dense(1000, use_bias=False)(inputs))
        self.state = TrainState(model, ResRepOptimizer())
        self.variable = model.weights[0]
        self.checkpoints = CheckpointWriter(folder, 3, Cluster())

    def save(self, step, **options):
        self.variable.assign(tf.fill([1, 1000], float(step)))
        self.state.step, self.state.num_chosen = step, 2 * step
        self.checkpoints.save(self.state, **options)

    def restore(self):
        state = self.checkpoints.restore(lambda channels: self.state)
        return {"step": state.step, "num_chosen": state.num_chosen, "layout": state.channels}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "checkpoints")


@pytest.fixture
def disk(monkeypatch):
    """Lets no write reach the disk until it is set."""
    opened, flush = threading.Event(), os.fsync

    def wait_and_flush(descriptor):
        assert opened.wait(60)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", wait_and_flush)
    yield opened
    opened.set()


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def names(tmp_path):
    return sorted(path.name for path in tmp_path.glob("checkpoints/*"))


def test_the_run_goes_on_while_a_checkpoint_is_written_and_what_it_changes_is_not_in_it(tmp_path, run, disk):
    run.save(10)
    # In place, as an optimizer does it.
    run.variable.assign_add(tf.ones([1, 1000]))
    run.variable[:, :500].assign(tf.fill([1, 500], -1.0))
    assert names(tmp_path) in ([], ["step-00000010.partial"])
    disk.set()
    run.checkpoints.wait()
    assert names(tmp_path) == ["step-00000010"]
    assert run.restore() == {"step": 10, "num_chosen": 20, "layout": None}
    np.testing.assert_array_equal(run.variable, np.full([1, 1000], 10.0))


def test_at_most_one_is_under_way_and_a_save_that_has_to_wait_says_so(tmp_path, run, disk, log):
    run.save(10)
    threading.Timer(0.3, disk.set).start()
    run.save(20)
    assert "step-00000010" in names(tmp_path), "the second may not start before the first is whole"
    assert "Step 20 waits: the checkpoint of step 10 is still being written" in log.text
    assert "longer than the next one was due; checkpoint.interval_steps may be too low" in log.text
    run.checkpoints.wait()
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    run.save(30)
    run.checkpoints.wait()
    assert log.text.count("waits") == 1


def test_the_last_one_is_waited_for(tmp_path, run, disk):
    run.save(10)
    threading.Timer(0.3, disk.set).start()
    run.save(20, is_last=True)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def block(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands where the folder should be")


def test_a_failure_is_said_at_once_and_the_save_after_the_third_ends_the_run(tmp_path, run, log):
    block(tmp_path)
    for number, step in enumerate((10, 20, 30), start=1):
        run.save(step)
        run.checkpoints.wait()
        assert log.text.count("cannot be written") == number
    with pytest.raises(CheckpointWriteError, match=r"step 30: 3 checkpoint\(s\) in a row") as error:
        run.save(40)
    assert error.value.exit_code == 6
    assert log.text.count("cannot be written") == 3, "no fourth was tried"


@pytest.mark.parametrize("call", ["stat", "listdir"])
def test_a_disk_that_does_not_answer_ends_the_run_after_the_third_failure_too(tmp_path, run, log, monkeypatch, call):
    (tmp_path / "checkpoints").mkdir()
    original = getattr(os, call)

    def fail(path=".", *arguments, **options):
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for number, step in enumerate((10, 20, 30), start=1):
            run.save(step)
            run.checkpoints.wait()
            assert log.text.count("cannot be written (Stale file handle)") == number
        with pytest.raises(CheckpointWriteError, match=r"step 30: 3 checkpoint\(s\) in a row"):
            run.save(40)


def test_one_success_starts_the_count_anew(tmp_path, run):
    block(tmp_path)
    run.save(10)
    run.save(20)
    run.checkpoints.wait()
    (tmp_path / "checkpoints").unlink()
    run.save(30)
    run.checkpoints.wait()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    block(tmp_path)
    for step in (40, 50, 60):
        run.save(step)
    with pytest.raises(CheckpointWriteError, match="step 60: 3 "):
        run.save(70)


def test_a_last_one_that_fails_ends_the_run_and_is_tried_whatever_came_before(tmp_path, run):
    block(tmp_path)
    for step in (10, 20, 30):
        run.save(step)
    run.checkpoints.wait()
    with pytest.raises(CheckpointWriteError, match="step 40: 4 "):
        run.save(40, is_last=True)
    (tmp_path / "checkpoints").unlink()
    run.save(50, is_last=True)
    assert names(tmp_path) == ["step-00000050"]


def test_what_else_goes_wrong_in_the_thread_is_raised_by_the_next_save(run, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError("no room for the copy")

    monkeypatch.setattr(np, "savez", fail)
    run.save(10)
    with pytest.raises(MemoryError, match="no room for the copy"):
        run.save(20)


def test_without_a_folder_nothing_is_written(tmp_path):
    run = Run(None)
    run.save(10, is_last=True)
    assert run.restore() == {"step": 0, "num_chosen": 0, "layout": None}
    assert not list(tmp_path.iterdir())
