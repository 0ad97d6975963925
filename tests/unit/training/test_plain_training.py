"""A run without the section `prune`."""

import io
import json

from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.reporting.table import print_report, read_report
from resrep_dist.runs import results
from resrep_dist.runs import train as run
from resrep_dist.training.trainer import Trainer
from tests.networks import DIGITS_CONFIG, random_source, small_config, small_network

import pytest
from rich.console import Console
from tensorflow import keras


def test_a_plain_run_starts_from_weights_trains_and_leaves_a_model_and_a_report(tmp_path):
    settings = [
        "model.name=python:tests.networks:small_classifier",
        "prune=null",
        "shrink.mode=off",
        "base=null",
        "train.num_epochs=30",
        "data.global_batch_size=64",
        "train.learning_rate=0.1",
    ]
    console = Console(file=io.StringIO(), width=200)
    cluster = Cluster()
    first = load_config(DIGITS_CONFIG, settings)
    run.train(first, tmp_path / "first", cluster, console)
    weights = tmp_path / "first" / "final" / "model.h5"
    second = load_config(
        DIGITS_CONFIG, [*settings, f"model.weights={weights}", "train.learning_rate=1e-6", "train.num_epochs=1"]
    )
    report = run.train(second, tmp_path / "second", cluster, console)
    assert report == read_report(tmp_path / "second")
    before = json.loads((tmp_path / "first" / "final" / "report.json").read_text())
    # So small a rate changes next to nothing: it did start from the weights.
    assert report["final"]["top1"] == pytest.approx(before["final"]["top1"], abs=2.0)
    assert before["final"]["top1"] > 80 and report["final"]["top5"] >= report["final"]["top1"]
    assert report["final"]["macs"] > 0 and not (tmp_path / "second" / "slim").exists()
    model = keras.models.load_model(tmp_path / "second" / "final" / "model.h5", compile=False)
    assert model.name == "small"
    print_report(console, report, tmp_path / "second")
    assert "trained without pruning" in console.file.getvalue()
    with pytest.raises(ConfigError, match="has nothing to merge"):
        results.merge_run(tmp_path / "second")


def test_a_graph_without_the_section_prune_is_refused():
    import resrep_dist

    model = small_network()
    config = small_config(prune=None, base=None)
    with pytest.raises(ConfigError, match="prune: missing"):
        Trainer(model, resrep_dist.trace(model), config, random_source(), random_source())
