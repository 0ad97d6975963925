import dataclasses
import io

from resrep_dist.checkpoints.files import CheckpointFolder
from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import trace
from resrep_dist.pruning.goals import goal_of
from resrep_dist.reporting.goals import outcome_of
from resrep_dist.reporting.table import print_report
from resrep_dist.reporting.verdict import verdict
from resrep_dist.runs.preparation import prepare
from resrep_dist.runs.results import merge_run
from resrep_dist.runs.start import copy_newest_state, from_run
from resrep_dist.runs.train import train
from resrep_dist.runs.workdir import config_of_run, open_workdir, with_costs_of_run
from tests.networks import DIGITS_CONFIG, shrinking_config, small_config, small_network
from tests.tables import write_table

import pytest
from rich.console import Console

CIFAR = ["data.source=cifar10", "data.path=/old/place", "model.image_size=32"]


def test_a_run_goes_on_where_its_data_has_moved_and_not_with_other_settings(tmp_path):
    open_workdir(load_config(DIGITS_CONFIG, ["train.learning_rate=0.3"]), tmp_path)
    # Nothing has been trained with it yet.
    (tmp_path / "stop").touch()
    open_workdir(load_config(DIGITS_CONFIG, CIFAR), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    moved = load_config(DIGITS_CONFIG, [*CIFAR, "data.path=/new/place", "data.evaluation_batch_size=10"])
    open_workdir(moved, tmp_path)
    assert load_config(tmp_path / "config.yaml") == moved
    with pytest.raises(ConfigError, match=r"data.global_batch_size is 128 there and 64 here"):
        open_workdir(load_config(DIGITS_CONFIG, [*CIFAR, "data.global_batch_size=64"]), tmp_path)
    with pytest.raises(ConfigError, match=r"train.learning_rate is 0.02 there and 0.5 here"):
        open_workdir(load_config(DIGITS_CONFIG, [*CIFAR, "train.learning_rate=0.5"]), tmp_path)
    assert load_config(tmp_path / "config.yaml") == moved


def test_a_folder_of_other_things_is_refused_and_what_a_killed_start_left_is_not(tmp_path):
    for name in (".launch-0123", ".lease.json.4567", ".config.partial", "stop", "lease.json"):
        (tmp_path / name).touch()
    open_workdir(load_config(DIGITS_CONFIG), tmp_path)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"not empty and not a run \(no config.yaml\)"):
        open_workdir(load_config(DIGITS_CONFIG), tmp_path)


def test_a_run_aims_at_a_time_and_goes_on_with_the_same_table_only(tmp_path, monkeypatch, caplog):
    graph = trace(small_network())
    monkeypatch.chdir(tmp_path)
    write_table(graph, tmp_path / "costs.json")
    config = small_config(
        model={"name": "python:tests.networks:small_classifier"},
        train={"num_epochs": 4},
        prune={
            "target_macs_fraction": None,
            "target": {"latency_fraction": 0.7, "costs": "costs.json"},
            "mask_start_epochs": 0.2,
            "lasso_strength": 0.1,
            "max_extension_epochs": 2,
        },
    )
    report = train(config, tmp_path / "run", Cluster(), Console(quiet=True))
    kept = [entry["kept"] for entry in report["certificate"]["channels"].values()]
    left = goal_of(graph, config.prune).fraction_at(kept)
    assert left < 1 and report["target"]["left_fraction"] == pytest.approx(left)
    assert report["target_missed"] == (left > 0.7) and report["target_macs_fraction"] is None
    assert outcome_of(report).noun == "latency"
    assert "latency" in verdict(report | {"target_missed": True})
    shown = Console(file=io.StringIO(), width=200)
    print_report(shown, report, tmp_path / "run")
    assert "target 70.0 % latency" in shown.file.getvalue()
    print_report(shown, report, tmp_path / "run [v2]")
    assert "run [v2]/slim/model.h5" in shown.file.getvalue()
    # Moved, and gone: the run has its own copy.
    (tmp_path / "costs.json").rename(tmp_path / "moved.json")
    assert merge_run(tmp_path / "run")["target"] == report["target"]
    target = dataclasses.replace(config.prune.target, costs="moved.json")
    moved = dataclasses.replace(config, prune=dataclasses.replace(config.prune, target=target))
    assert train(moved, tmp_path / "run", Cluster(), None)["target"] == report["target"]
    write_table(graph, tmp_path / "moved.json", base_ms=7.0)
    with pytest.raises(ConfigError, match="prune.target.costs_sha256 is .* there and .* here"):
        train(moved, tmp_path / "run", Cluster(), None)
    (tmp_path / "moved.json").unlink()
    caplog.set_level("INFO", logger="resrep_dist")
    assert train(moved, tmp_path / "run", Cluster(), None)["target"] == report["target"]
    assert f"moved.json is gone; the run goes on with its copy, {tmp_path / 'run' / 'costs.json'}." in caplog.text


def test_the_copy_of_a_table_that_is_gone_is_used_once_a_run_has_begun(tmp_path):
    costs, run = tmp_path / "costs.json", tmp_path / "run"
    write_table(trace(small_network()), costs)
    target = {"target_macs_fraction": None, "target": {"latency_fraction": 0.7, "costs": str(costs)}}
    config = small_config(model={"name": "python:tests.networks:small_classifier"}, prune=target)
    started = prepare(config, run, Cluster())
    assert with_costs_of_run(config, run) == config
    costs.unlink()
    # What a start without a step left may be of another table.
    assert with_costs_of_run(config, run) == config
    (run / "base").mkdir()
    moved = run.rename(tmp_path / "moved")
    resumed = prepare(with_costs_of_run(config, moved), moved, Cluster())
    assert resumed.config.prune.target == dataclasses.replace(
        started.config.prune.target, costs=str(moved / "costs.json")
    )
    assert config_of_run(moved) == resumed.config
    (moved / "costs.json").unlink()
    with pytest.raises(ConfigError, match=r"costs\.json: cannot be read"):
        prepare(with_costs_of_run(config, moved), moved, Cluster())


@pytest.fixture(scope="module", params=[pytest.param("exact", marks=pytest.mark.slow), "merge"])
def shrunken_run(request, tmp_path_factory):
    """The mode in which a run has shrunk, its configuration, its folder and its report."""
    mode, run = request.param, tmp_path_factory.mktemp("shrunken")
    config = dataclasses.replace(
        shrinking_config(mode),
        model=dataclasses.replace(small_config().model, name="python:tests.networks:small_classifier"),
        train=dataclasses.replace(small_config().train, num_epochs=8 if mode == "merge" else 4),
    )
    config = dataclasses.replace(config, prune=dataclasses.replace(config.prune, mask_start_epochs=0.2))
    return mode, config, run, train(config, run, Cluster(), Console(quiet=True))


def test_a_run_that_shrinks_is_merged_from_its_checkpoint_and_reports_the_original_widths(shrunken_run):
    mode, _, _, report = shrunken_run
    graph = trace(small_network())
    channels = report["certificate"]["channels"]
    assert {name: entry["original"] for name, entry in channels.items()} == {g.name: g.width for g in graph.groups}
    kept = [entry["kept"] for entry in channels.values()]
    assert report["slim"]["macs"] == graph.macs.total(kept) <= 0.6 * report["base"]["macs"]
    if mode == "merge":
        assert report["slim"]["macs"] == report["trained"]["macs"]
        assert 0 < report["early_merge"]["step"] < report["made_from"]["step"]
        assert report["early_merge"]["certificate"]["max_relative_difference"] < 1e-5
        assert "saved_seconds" in report["training"]
    else:
        # The trained model is shrunken already, with compactors in it.
        assert report["slim"]["macs"] < report["trained"]["macs"] < 1.1 * report["base"]["macs"]
    assert report["slim"]["top1"] == report["trained"]["top1"]
    assert 0.4 < report["training"]["macs_vs_plain"] < 1.1


def test_the_newest_state_of_another_run_is_taken_unless_it_was_merged(shrunken_run, tmp_path):
    mode, config, run, report = shrunken_run
    new, step = tmp_path / "new", report["made_from"]["step"]
    if mode == "exact":
        copy_newest_state(run, new)
        assert CheckpointFolder(new / "checkpoints").newest_step() == step
        return
    again = from_run(config, run)
    expected = rf"--from {run}: its newest checkpoint, step {step}, was merged .* to file:{run}/slim/model.h5$"
    with pytest.raises(ConfigError, match=expected):
        train(again, new, Cluster(), None, newest_of=run)
    assert [path.name for path in new.iterdir()] == ["config.yaml"]
    # Both ways on that it names can start, the first one in the folder of the refused start.
    prepare(again, new, Cluster())
    slim = dataclasses.replace(config.model, name=f"file:{run}/slim/model.h5")
    prepare(dataclasses.replace(config, model=slim), tmp_path / "slim", Cluster())
    # A run that was merged itself goes on from its own state.
    copy_newest_state(run, run)
