"""The best checkpoint is that of the best evaluation whose target is reached."""

import errno
import io
import logging
import os
import re
from types import SimpleNamespace
from unittest.mock import Mock

import resrep_dist
from resrep_dist.checkpoints.files import CheckpointFolder
from resrep_dist.checkpoints.writer import CheckpointWriter
from resrep_dist.config.tasks import score_of
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.monitoring.monitor import configure_logging
from resrep_dist.training.best import BestCheckpoint
from tests.networks import random_source, small_config, small_network, train_state

import pytest
from rich.console import Console


def best_position(folder):
    position = CheckpointFolder(folder / "best").newest_position()
    return (position["step"], position["top1"]) if position else None


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)
    return caplog


@pytest.fixture
def graph():
    return resrep_dist.trace(small_network())


@pytest.fixture
def consider(graph):
    """A function that lets a best checkpoint consider an evaluation."""
    state = train_state(insert_compactors(small_network(), graph), graph)

    def consider(best, step, top1, left=0.5, alive=0):
        state.step = step
        pruner = SimpleNamespace(is_pruned=lambda: left <= 0.5 and alive == 0)
        best.consider(state, score_of({"top1": top1}), pruner)

    return consider


def test_only_a_state_that_reaches_the_target_counts_and_only_a_better_one_replaces_it(tmp_path, graph, consider):
    def after(*evaluation, **pruned):
        consider(best, *evaluation, **pruned)
        return best_position(tmp_path)

    best = BestCheckpoint(tmp_path, Cluster(), graph, small_config())
    assert after(10, 99.0, left=0.6) is None, "the target is 0.5"
    assert after(20, 99.0, alive=3) is None
    assert after(30, 80.0) == (30, 80.0)
    assert after(40, 80.0) == after(50, 70.0) == (30, 80.0)
    assert after(60, 90.0) == (60, 90.0)
    best = BestCheckpoint(tmp_path, Cluster(), graph, small_config())  # the run resumes
    assert after(70, 85.0) == (60, 90.0)
    assert after(80, 91.0) == (80, 91.0)
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_a_folder_that_cannot_be_listed_keeps_its_checkpoint_and_is_asked_again(
    tmp_path, graph, consider, monkeypatch, log
):
    consider(BestCheckpoint(tmp_path, Cluster(), graph, small_config()), 10, 80.0)
    best = BestCheckpoint(tmp_path, Cluster(), graph, small_config())  # the run resumes
    with monkeypatch.context() as patch:
        for call in ("listdir", "scandir"):
            patch.setattr(os, call, Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
        consider(best, 20, 70.0)
    assert "best: cannot be listed (Permission denied)" in log.text and "not compared" in log.text
    consider(best, 30, 75.0)
    assert best_position(tmp_path) == (10, 80.0)
    consider(best, 40, 85.0)
    assert best_position(tmp_path) == (40, 85.0)


def test_one_that_could_not_be_written_is_not_the_best(tmp_path, graph, consider, log):
    best = BestCheckpoint(tmp_path, Cluster(), graph, small_config())
    (tmp_path / "best").write_text("a file stands where the folder should be")
    consider(best, 10, 90.0)
    assert "best/step-00000010: cannot be written" in log.text
    assert log.text.rstrip().endswith("trying again at the next evaluation that is better than the one kept")
    (tmp_path / "best").unlink()
    consider(best, 20, 80.0)
    assert best_position(tmp_path) == (20, 80.0)


def test_rank_0_waits_for_its_disk_in_a_collective_with_the_long_limit(tmp_path, graph, consider, monkeypatch):
    """The other ranks wait there too: they must not take a slow disk for a stall, and learn what came of the write."""
    cluster, waits, wait = Cluster(), [], CheckpointWriter.wait

    def wait_and_note(writer):
        waits.append(cluster.watchdog._is_patient)
        wait(writer)

    monkeypatch.setattr(CheckpointWriter, "wait", wait_and_note)
    consider(BestCheckpoint(tmp_path, cluster, graph, small_config()), 10, 90.0)
    assert best_position(tmp_path) == (10, 90.0) and waits and all(waits)


def test_every_evaluation_is_printed_and_the_best_one_is_kept(tmp_path):
    config = small_config(prune=None, base=None, train={"num_epochs": 4}, logging={"interval_steps": 1000})
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=False)
    configure_logging(console, is_root=True)
    logging.getLogger("resrep_dist").handlers[0].setStream(shown)
    validation = random_source(64, seed=1)
    trainer = resrep_dist.Trainer(
        small_network(), None, config, random_source(), validation, workdir=tmp_path, console=console
    )
    trainer.run()
    text = shown.getvalue()
    evaluations = re.findall(r"train step (\d+)/40  validation top-1 ([\d.]+) %", text)
    assert [int(step) for step, _ in evaluations] == [10, 20, 30, 40]
    assert text.startswith("train step 0/40  starts; ") and "the first step took " in text.splitlines()[1]
    step, top1 = best_position(tmp_path)
    accuracies = [float(value) for _, value in evaluations]
    assert round(top1, 2) == max(accuracies) and step == 10 * (1 + accuracies.index(max(accuracies)))
    assert CheckpointFolder(tmp_path / "checkpoints").newest_position()["is_end"] is True
