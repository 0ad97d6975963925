"""The folder of a finished run: what may stand in it, and from where it is used."""

import logging
import os
import shutil

from resrep_dist.cli.main import main
from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.lease import Lease
from resrep_dist.errors import ConfigError
from resrep_dist.models.files import save_model
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
    for command in (["merge", run], ["report", run], ["export", run, "--format", "tflite"]):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert os.listdir() == []


def test_a_run_resumes_by_any_name_of_its_files_and_not_with_others(there, tmp_path, monkeypatch):
    def resume(config):
        train(config, there / "run", Cluster(), None)

    (tmp_path / "link").symlink_to(there)
    (tmp_path / "elsewhere").mkdir()
    # The run was copied, so its files have to be named anew first, as a run of an older version names them.
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
