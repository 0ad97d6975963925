"""A program's own tracker."""

import itertools
import logging
import time

import resrep_dist
from resrep_dist.errors import UserError
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.reporting.run_folder import read_curves
from tests.networks import random_source, shrinking_config, small_network

import numpy as np
import pytest


class Tracker(resrep_dist.Hook):
    """Ten lines that log what a run does."""

    def __init__(self):
        self.calls = []

    def on_start(self, trainer):
        self.calls.append(("start", trainer.step))

    def on_step(self, trainer, metrics):
        self.calls.append(("step", trainer.step))
        if metrics is not None:
            assert set(metrics) >= {"loss", "top1", "learning_rate", "skipped_steps"}
            self.calls.append(("metrics", trainer.step))

    def on_evaluation(self, trainer, values, seconds):
        assert 0 <= values["top1"] <= 100 and seconds > 0
        self.calls.append(("evaluation", trainer.step))

    def before_checkpoint(self, trainer):
        self.calls.append(("before checkpoint", trainer.step))

    def on_checkpoint(self, trainer, seconds):
        self.calls.append(("checkpoint", trainer.step))

    def on_shrink(self, trainer, figures):
        assert set(figures) == {"training_macs_fraction", "build_seconds", "tracing_seconds"}
        assert trainer.state.channels.widths < trainer.graph.widths
        self.calls.append(("shrink", trainer.step))

    def on_end(self, trainer):
        self.calls.append(("end", trainer.step))

    def steps(self, name):
        return [step for kind, step in self.calls if kind == name]


def make_trainer(workdir, *hooks):
    model = small_network()
    data = random_source(), random_source(64, seed=1)
    return resrep_dist.Trainer(model, resrep_dist.trace(model), shrinking_config(), *data, workdir=workdir, hooks=hooks)


def test_a_tracker_is_told_of_everything_once_and_in_its_order(tmp_path):
    tracker = Tracker()
    trainer = make_trainer(tmp_path, tracker)
    trainer.run()
    last = trainer.num_steps
    assert trainer.step == last == 150
    assert tracker.calls[0] == ("start", 0) and tracker.calls[-1] == ("end", last)
    assert tracker.steps("step") == list(range(1, last + 1))
    assert tracker.steps("metrics") == list(range(10, last + 1, 10))
    assert tracker.steps("evaluation") == list(range(10, last + 1, 10))
    assert tracker.steps("checkpoint") == list(range(10, last + 1, 10))
    assert tracker.steps("before checkpoint") == [*range(10, last + 1, 10), last]
    shrinks = tracker.steps("shrink")
    assert shrinks and all(step % 10 == 0 for step in shrinks)
    first = tracker.calls.index(("shrink", shrinks[0]))
    assert tracker.calls[first + 1] == ("step", shrinks[0]), "after a shrink the step is told of with the new model"
    resumed = Tracker()
    make_trainer(tmp_path, resumed).run()
    assert resumed.calls == [("start", last), ("before checkpoint", last), ("end", last)]


def test_a_hook_sees_the_batches_and_its_error_ends_the_run(tmp_path):
    class Counter(resrep_dist.Hook):
        num_images = 0

        def wrap_batches(self, trainer, batches):
            for images, labels in batches:
                self.num_images += len(images)
                yield images, labels

        def on_step(self, trainer, metrics):
            if trainer.step == 7:
                raise ZeroDivisionError("of the tracker")

    class Other(Tracker):
        pass

    counter, other = Counter(), Other()
    with pytest.raises(ZeroDivisionError, match="of the tracker"):
        make_trainer(tmp_path, counter, other).run()
    assert counter.num_images == 7 * 32
    assert other.calls[-1] == ("end", 7), "curves and trackers are closed"
    assert np.all(np.diff(other.steps("step")) == 1)


def test_a_hook_that_ends_the_batches_is_named_as_the_cause(tmp_path):
    class Three(resrep_dist.Hook):
        def wrap_batches(self, trainer, batches):
            return itertools.islice(batches, 3)

    with pytest.raises(UserError, match="step 3: a hook ended the batches"):
        make_trainer(tmp_path, Three()).run()


def test_all_hooks_are_closed_whatever_one_raises_and_the_runs_own_error_stays(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)

    class Broken(resrep_dist.Hook):
        def on_start(self, trainer):
            raise ZeroDivisionError("at the start")

        def on_end(self, trainer):
            raise OSError("no network")

    last = Tracker()
    with pytest.raises(ZeroDivisionError, match="at the start"):
        make_trainer(tmp_path, Broken(), last).run()
    assert last.calls == [("end", 0)]
    assert "Broken.on_end failed (OSError: no network)" in caplog.text
    monkeypatch.setattr(Broken, "on_start", resrep_dist.Hook.on_start)
    trainer = make_trainer(tmp_path / "other", Broken(), Tracker())
    monkeypatch.setattr(trainer, "is_done", lambda: True)
    with pytest.raises(OSError, match="no network"):
        trainer.run()


def test_drawing_is_part_of_an_evaluation_and_not_of_the_steps_after_it(tmp_path, monkeypatch):
    drawn = Monitor.picture

    def slow(self, *arguments):
        time.sleep(0.25)
        drawn(self, *arguments)

    monkeypatch.setattr(Monitor, "picture", slow)
    trainer = make_trainer(tmp_path)
    trainer.start()
    trainer.train_until(30)
    trainer._hooks.on_end(trainer)
    curves = read_curves(tmp_path / "tensorboard")
    # Four pictures at each evaluation, which come after the logging steps 10 and 20 and their points.
    assert [seconds > 1.0 for _, seconds in curves["time/evaluation_seconds"]] == [True, True, True]
    measured = dict(curves["time/step_seconds"])
    assert measured[20] < 0.1 and measured[30] < 0.1, "1 s in ten steps is 0.1 s a step"
