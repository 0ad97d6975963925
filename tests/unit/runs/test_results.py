"""The folder of a finished run: what may stand in it, and from where it is used."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil

from resrep_dist.cli.main import main
from resrep_dist.config import Config, load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.lease import Lease
from resrep_dist.errors import ConfigError
from resrep_dist.models.files import save_model
from resrep_dist.reporting.table import read_report
from resrep_dist.runs import results
from resrep_dist.runs.start import from_run
from resrep_dist.runs.train import train
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest


def relative_config(**changes) -> Config:
    """Its model and its data are named relative to the current folder."""
    sections = {
        "model": {"name": "file:net.h5"},
        "data": {"source": "npz", "path": "data/../data.npz"},
        "base": None,
        "train": {"num_epochs": 2},
        "prune": {"mask_start_epochs": 0.2, "max_extension_epochs": 0},
    }
    return small_config(**(sections | changes))


@pytest.fixture(scope="module")
def started_there(tmp_path_factory):
    """The folder in which a run was started, with the run in `run`."""
    folder = tmp_path_factory.mktemp("there")
    save_model(small_network(), folder / "net.h5")
    training, validation = random_source(), random_source(seed=1)
    arrays = {"x_train": training.images, "y_train": training.labels}
    np.savez(folder / "data.npz", **arrays, x_test=validation.images, y_test=validation.labels)
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(relative_config(), folder / "run", Cluster(), None)
    return folder


@pytest.fixture
def there(started_there, tmp_path):
    """The same for one test."""
    return shutil.copytree(started_there, tmp_path / "there")


@pytest.fixture
def logged(monkeypatch):
    """What the command line's log settings keep from the root logger reaches `caplog`."""
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)


def test_a_run_is_merged_reported_and_exported_from_another_folder(started_there, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = str(started_there / "run")
    assert main(["merge", run, "--strict"]) == 10, "a base that learned noise is broken"
    for command in (["report", run], ["export", run, "--format", "tflite"]):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert os.listdir() == []


def test_what_a_run_chose_is_in_its_configuration_and_stays(tmp_path, monkeypatch, started_there, logged, caplog):
    monkeypatch.chdir(started_there)
    automatic = {"lasso_strength": "auto", "mask_interval_steps": "auto", "channels_per_update": "auto"}
    config = relative_config(prune={"mask_stop_fraction": None, "max_extension_epochs": 0, **automatic})
    caplog.set_level(logging.INFO, "resrep_dist")
    train(config, tmp_path / "run", Cluster(), None)
    path = tmp_path / "run" / "config.yaml"
    chosen = load_config(path).prune
    assert chosen.lasso_strength > 0 and chosen.channels_per_update > 0
    assert f"Chosen: prune.lasso_strength {chosen.lasso_strength:g}, " in caplog.text
    # As if another version had chosen it: `auto` means what the run has.
    strength = f"lasso_strength: {chosen.lasso_strength}\n"
    path.write_text(path.read_text().replace(strength, "lasso_strength: 0.125\n"))
    train(config, tmp_path / "run", Cluster(), None)
    assert load_config(path).prune == dataclasses.replace(chosen, lasso_strength=0.125)


def change_position(workdir, change):
    """Write the position of the only checkpoint again, with its checksum."""
    (path,) = (workdir / "checkpoints").glob("*/position.json")
    sums, before = path.with_name("SHA256SUMS"), hashlib.sha256(path.read_bytes()).hexdigest()
    position = json.loads(path.read_text())
    change(position)
    path.write_text(json.dumps(position))
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))


def test_a_merge_takes_the_checkpoint_that_is_named_and_says_which(there, monkeypatch, capsys):
    monkeypatch.chdir(there)
    assert main(["merge", "run", "--checkpoint", "20"]) == 0
    assert "Made from the checkpoint, step 20." in capsys.readouterr().out
    assert main(["merge", "run", "--checkpoint", "7"]) == 2
    assert "there is none; expected one of the steps 20" in capsys.readouterr().err
    assert main(["merge", "run", "--checkpoint", "best"]) == 2
    assert "no best checkpoint; it is kept from the first evaluation on" in capsys.readouterr().err
    change_position(there / "run", lambda position: position.update(is_end=False))
    shutil.copytree(there / "run" / "checkpoints", there / "run" / "best")
    assert main(["merge", "run", "--checkpoint", "best"]) == 0
    assert "Made from the best checkpoint, step 20, which is not the end of the training." in capsys.readouterr().out


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_touches_nothing_and_more_epochs_go_on(there, monkeypatch, logged, caplog):
    monkeypatch.chdir(there)
    caplog.set_level(logging.INFO, "resrep_dist")
    run = there / "run"
    (run / "config.yaml").write_text(relative_config().to_yaml())
    train(relative_config(), run, Cluster(), None)  # now its paths are those of the copy
    (run / "export").mkdir(exist_ok=True)
    (run / "export" / "model.onnx").touch()
    before = files_of(run)
    caplog.clear()
    report = train(relative_config(), run, Cluster(), None)
    assert report == read_report(run) and files_of(run) == before
    assert "This run is finished" in caplog.text and "Resumed" not in caplog.text
    with pytest.raises(ConfigError, match=r"num_epochs is 2.0 there and 1.0 here; .* may be raised\); .* --from "):
        train(relative_config(train={"num_epochs": 1}), run, Cluster(), None)
    assert files_of(run) == before
    longer = train(relative_config(train={"num_epochs": 3}), run, Cluster(), None)
    assert "The run is extended from 2 to 3 epochs" in caplog.text and "Resumed at step 20" in caplog.text
    assert longer["made_from"]["step"] == 30


def killed_before_a_checkpoint(*_):
    raise Killed


@pytest.mark.parametrize("is_pruned", [True, False])
def test_an_extension_that_was_killed_before_a_checkpoint_goes_on(there, monkeypatch, logged, caplog, is_pruned):
    monkeypatch.chdir(there)
    caplog.set_level(logging.INFO, "resrep_dist")
    run, changes = there / ("run" if is_pruned else "plain"), {} if is_pruned else {"prune": None}
    if is_pruned:
        (run / "config.yaml").write_text(relative_config().to_yaml())
    report = train(relative_config(**changes), run, Cluster(), None)
    longer = relative_config(**changes, train={"num_epochs": 3})
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("resrep_dist.training.trainer.Trainer.train_until", killed_before_a_checkpoint)
        train(longer, run, Cluster(), None)
    assert load_config(run / "config.yaml").train.num_epochs == 3 and read_report(run) == report
    caplog.clear()
    assert train(longer, run, Cluster(), None)["made_from"]["step"] == 30
    assert "Resumed at step 20" in caplog.text and "This run is finished" not in caplog.text
    caplog.clear()
    assert train(longer, run, Cluster(), None)["made_from"]["step"] == 30
    assert "This run is finished" in caplog.text


def test_a_checkpoint_that_does_not_record_its_settings_is_found_finished_by_the_trainer(
    there, monkeypatch, logged, caplog
):
    monkeypatch.chdir(there)
    caplog.set_level(logging.INFO, "resrep_dist")
    run = there / "run"
    (run / "config.yaml").write_text(relative_config().to_yaml())
    change_position(run, lambda position: position.pop("config"))
    assert train(relative_config(), run, Cluster(), None) == read_report(run)
    assert "Resumed at step 20" in caplog.text and f"{run / 'slim'} is kept" in caplog.text


def test_a_run_starts_from_the_base_or_the_newest_state_of_another(there, monkeypatch, logged, caplog):
    monkeypatch.chdir(there)
    caplog.set_level(logging.INFO, "resrep_dist")
    prune = {"target_macs_fraction": 0.4, "max_extension_epochs": 0}
    run, config = there / "run", relative_config(train={"num_epochs": 3}, prune=prune)
    base = train(from_run(config, run), there / "new", Cluster(), None)["base"]
    assert base["top1"] == read_report(run)["base"]["top1"] and "Resumed" not in caplog.text
    newest = train(from_run(config, run), there / "newest", Cluster(), None, newest_of=run)
    assert (
        "Resumed at step 20" in caplog.text and newest["made_from"]["step"] >= 30
    ), "the steps of 3 epochs, and of the extension"
    with pytest.raises(ConfigError, match=r"--from \S*nothing: no base/model.h5"):
        from_run(config, there / "nothing")


def test_a_run_resumes_by_any_name_of_its_files_and_not_with_others(there, tmp_path, monkeypatch):
    def resume(config):
        train(config, there / "run", Cluster(), None)

    (tmp_path / "link").symlink_to(there)
    (tmp_path / "elsewhere").mkdir()
    # The run was copied, so its files have to be named again first, as a run of an older version names them.
    (there / "run" / "config.yaml").write_text(relative_config().to_yaml())
    monkeypatch.chdir(there)
    resume(relative_config())
    assert f"file:{there}/net.h5" in (there / "run" / "config.yaml").read_text()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (there, tmp_path / "link", "../link"):
        data = {"source": "npz", "path": f"{folder}/data.npz"}
        resume(relative_config(model={"name": f"file:{folder}/net.h5"}, data=data))
    shutil.copy(there / "net.h5", "net.h5")
    with pytest.raises(
        ConfigError, match=rf"model.name is file:{there}/net.h5 there and file:\S*/elsewhere/net.h5 here"
    ):
        resume(relative_config(data=data))


def test_a_merge_keeps_what_a_user_has_put_beside_the_slim_model(there, monkeypatch):
    monkeypatch.chdir(there)
    (there / "run" / "config.yaml").write_text(relative_config().to_yaml())
    slim = there / "run" / "slim"
    (slim / "notes.txt").write_text("mine")
    (slim / "saved_model").mkdir()
    (slim / "saved_model" / "saved_model.pb").write_text("mine too")
    before = (slim / "model.h5").stat().st_mtime_ns
    assert main(["merge", str(there / "run")]) == 0
    assert (slim / "model.h5").stat().st_mtime_ns > before
    assert (slim / "notes.txt").read_text() == "mine"
    assert (slim / "saved_model" / "saved_model.pb").read_text() == "mine too"
    assert not [path for path in (there / "run").iterdir() if "slim" in path.name and path != slim]


class Killed(BaseException):
    """The process ends here; nothing catches it."""


def publish_until_killed(workdir, generation, num_calls, patch):
    """Publish a folder of this generation, killed at its call number `num_calls` of the system; True where it ended."""
    left = itertools.count(num_calls, -1)
    partial = workdir / "slim.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "model.h5").write_text(str(generation))

    def until_killed(function):
        def call(*arguments, **options):
            if next(left) <= 0:
                raise Killed
            return function(*arguments, **options)

        return call

    with patch.context() as patched:
        for name in ("rename", "replace", "unlink", "rmdir", "fsync"):
            patched.setattr(os, name, until_killed(getattr(os, name)))
        try:
            results._publish({"generation": generation, "base": {}}, partial, workdir / "slim")
        except Killed:
            return False
    return True


def test_killed_at_any_moment_the_old_or_the_new_folder_is_whole(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(small_config().to_yaml())
    assert publish_until_killed(tmp_path, 0, 1000, monkeypatch)
    (tmp_path / "slim" / "notes.txt").write_text("mine")
    found = []
    for num_calls in itertools.count():
        is_whole = publish_until_killed(tmp_path, num_calls + 1, num_calls, monkeypatch)
        found.append(read_report(tmp_path)["generation"])
        assert [int(path.read_text()) for path in tmp_path.glob("*slim*/model.h5") if is_current(path)] == found[-1:]
        assert [path.read_text() for path in tmp_path.glob("*slim*/notes.txt")] == ["mine"]
        if is_whole:
            break
    print(f"killed at {num_calls} places, found generations {found}")
    assert num_calls > 5 and found == sorted(found) and found[-1] == num_calls + 1
    assert {path.name for path in (tmp_path / "slim").iterdir()} == {"model.h5", "report.json", "notes.txt"}
    assert [path.name for path in tmp_path.glob("*slim*")] == ["slim"]


def is_current(model):
    """Not what a merge was about to write, nor what it had replaced already."""
    is_replaced = model.parent.name != "slim" and (model.parents[1] / "slim").exists()
    return not is_replaced and model.parent.name != "slim.partial"


@pytest.mark.slow
def test_a_finished_run_is_merged_again_only_for_another_checkpoint_or_other_settings(
    there, monkeypatch, logged, caplog
):
    monkeypatch.chdir(there)
    (there / "run" / "config.yaml").write_text(relative_config().to_yaml())
    slim = there / "run" / "slim"

    def has_merged(config):
        before = (slim / "model.h5").stat().st_ino
        report = train(config, there / "run", Cluster(), None)
        assert report == json.loads((slim / "report.json").read_text()) == read_report(there / "run")
        return (slim / "model.h5").stat().st_ino != before

    caplog.set_level(logging.INFO, "resrep_dist")
    assert not has_merged(relative_config())
    assert f"{slim} is kept" in caplog.text and "step 20" in caplog.text
    assert has_merged(relative_config(merge={"tolerance": 0.01}))
    assert not has_merged(relative_config(merge={"tolerance": 0.01}))
    # The training ends with another checkpoint than that of the report.
    report = json.loads((slim / "report.json").read_text())
    report["made_from"]["checkpoint_sha256"] = "0" * 64
    (slim / "report.json").write_text(json.dumps(report))
    assert has_merged(relative_config(merge={"tolerance": 0.01}))
    (slim / "model.h5").unlink()
    (slim / "model.h5").symlink_to("nowhere")
    train(relative_config(merge={"tolerance": 0.01}), there / "run", Cluster(), None)
    assert (slim / "model.h5").is_file()


def test_merge_is_refused_while_a_run_is_live(there, monkeypatch, capsys):
    monkeypatch.chdir(there)
    (there / "run" / "config.yaml").write_text(relative_config().to_yaml())
    lease = Lease(there / "run")
    lease.take()
    before = (there / "run" / "slim" / "model.h5").stat().st_mtime_ns
    assert main(["merge", str(there / "run")]) == 2
    expected = f"--workdir {there}/run: in use by process {os.getpid()} on host "
    assert capsys.readouterr().err.startswith(f"resrep: error: {expected}")
    assert (there / "run" / "slim" / "model.h5").stat().st_mtime_ns == before
    lease.release()
    assert main(["merge", str(there / "run")]) == 0
    assert not (there / "run" / "lease.json").exists()
