"""The base is looked at before it is pruned."""

import dataclasses
import json
import logging

from resrep_dist.cli.main import main
from resrep_dist.config import load_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ModelError
from resrep_dist.models.files import save_model
from resrep_dist.runs.base import check_base
from resrep_dist.runs.workdir import open_workdir
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest


@pytest.fixture
def logged(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)
    caplog.set_level(logging.INFO, "resrep_dist")
    return caplog


def with_limit(limit, **changes):
    return small_config(prune={"min_base_top1": limit}, **changes)


def test_a_base_that_guesses_is_refused_with_the_likely_causes_unless_it_is_wanted(logged):
    model, source = small_network(), random_source(64)
    message = r"the base model: validation top-1 [\d.]+ % on 64 images, guessing gives 10.00 %"
    with pytest.raises(ModelError, match=message) as caught:
        check_base(model, with_limit("auto", base=None, model={"weights": "x.h5"}), source, Cluster())
    for cause in (
        "the pixels are scaled otherwise",
        "classes have another order",
        "a softmax",
        "prune.min_base_top1: 0",
    ):
        assert cause in str(caught.value)
    with pytest.raises(ModelError, match="the section `base` is too short"):
        check_base(model, with_limit("auto"), source, Cluster())
    with pytest.raises(ModelError, match="prune.min_base_top1 is 90"):
        check_base(model, with_limit(90.0), source, Cluster())
    check_base(model, with_limit(0.0), source, Cluster())
    assert "The base before pruning: validation top-1 " in logged.text


def test_another_accuracy_than_the_earlier_one_is_said(tmp_path, logged):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "report.json").write_text(json.dumps({"final": {"top1": 88.0}}))
    config = with_limit(0.0, base=None, model={"weights": str(tmp_path / "final" / "model.h5")})
    check_base(small_network(), config, random_source(64), Cluster())
    assert "The report beside the base's file says 88.00 %" in logged.text


def test_nothing_is_trained_on_such_a_base_and_the_same_folder_goes_on_when_it_is_accepted(tmp_path, capsys):
    save_model(small_network(), tmp_path / "net.h5")
    source = random_source(64)
    arrays = {"x_train": source.images, "y_train": source.labels, "x_test": source.images, "y_test": source.labels}
    np.savez(tmp_path / "data.npz", **arrays)
    data = {"source": "npz", "path": str(tmp_path / "data.npz")}
    config = with_limit("auto", base=None, model={"name": f"file:{tmp_path}/net.h5"}, data=data)
    (tmp_path / "mine.yaml").write_text(config.to_yaml())
    assert main(["train", str(tmp_path / "mine.yaml"), "--workdir", str(tmp_path / "run")]) == 2
    assert "so it is not pruned" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    accepted = dataclasses.replace(config, prune=dataclasses.replace(config.prune, min_base_top1=0.0))
    (tmp_path / "run" / "base").mkdir(exist_ok=True)
    open_workdir(accepted, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.yaml").prune.min_base_top1 == 0


def test_a_look_at_a_model_needs_no_base_and_no_data(tmp_path, capsys):
    config = small_config(model={"name": "python:tests.networks:small_classifier"}, data={"source": "arrays"})
    path = tmp_path / "mine.yaml"
    path.write_text(dataclasses.replace(config, base=None).to_yaml())
    assert main(["inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The schedule of the masks is not known without the data: data.source: received 'arrays'" in shown
    assert main(["train", str(path), "--workdir", str(tmp_path / "run")]) == 2
    assert "neither is given" in capsys.readouterr().err
