"""The best checkpoint is that of the best evaluation whose target is reached."""

import io
import logging
import re
from types import SimpleNamespace

import resrep_dist
from resrep_dist.checkpoints.files import CheckpointFolder
from resrep_dist.config.tasks import score_of
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.monitoring.monitor import configure_logging
from resrep_dist.training.best import BestCheckpoint
from tests.networks import random_source, small_config, small_network, train_state

from rich.console import Console


def best_position(folder):
    position = CheckpointFolder(folder / "best").newest_position()
    return (position["step"], position["top1"]) if position else None


def test_only_a_state_that_reaches_the_target_counts_and_only_a_better_one_replaces_it(tmp_path):
    graph = resrep_dist.trace(small_network())
    state = train_state(insert_compactors(small_network(), graph), graph)

    def consider(step, top1, left=0.5, alive=0):
        state.step = step
        pruner = SimpleNamespace(is_pruned=lambda: left <= 0.5 and alive == 0)
        best.consider(state, score_of({"top1": top1}), pruner)
        return best_position(tmp_path)

    best = BestCheckpoint(tmp_path, Cluster(), graph, small_config())
    assert consider(10, 99.0, left=0.6) is None, "the target is 0.5"
    assert consider(20, 99.0, alive=3) is None
    assert consider(30, 80.0) == (30, 80.0)
    assert consider(40, 80.0) == consider(50, 70.0) == (30, 80.0)
    assert consider(60, 90.0) == (60, 90.0)
    best = BestCheckpoint(tmp_path, Cluster(), graph, small_config())  # the run resumes
    assert consider(70, 85.0) == (60, 90.0)
    assert consider(80, 91.0) == (80, 91.0)
    assert len(list((tmp_path / "best").iterdir())) == 1


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
