"""The names of models and files in what `resrep init` proposes."""

from pathlib import Path

from resrep_dist.cli.main import main
from resrep_dist.config import load_config
from resrep_dist.config.loading import parse_config
from resrep_dist.models.files import save_model
from resrep_dist.runs.proposal import propose
from tests.networks import small_network

import numpy as np
import pytest


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet21", "model.name: received 'resnet21'; did you mean `resnet20`? expected one of resnet20"),
        ("ResNet50", "did you mean `resnet50`?"),
        ("runs/mine", "model.name: received 'runs/mine'; expected one of resnet20"),
        ("kears:ResNet50", "model.name: received 'kears:ResNet50'; expected a name, keras:<Name>, file:<path>"),
        ("file:", "model.name: received 'file:'"),
    ],
)
def test_a_model_that_is_neither_a_file_nor_a_name_is_refused(name, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for call in (["init", "digits", name], ["prune", name, "--data", "digits"]):
        assert main(call) == 2
        shown = capsys.readouterr()
        assert expected in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_a_file_by_its_full_name_is_read_as_one_by_its_path(tmp_path):
    path = tmp_path / "net.h5"
    save_model(small_network(), path)
    text = propose(f"file:{path}", "digits")
    assert text == propose(str(path), "digits")
    assert parse_config(text, "proposal").base is None


NAMES = (
    "données été",
    "猫🐱",
    'a "quoted" one',
    "it's: #1, {x}",
    "back\\slash",
    "tab\tnew\nline",
    "\x7f\x85\u2028\u00a0",
    "🏴\U000e0067",
)


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_written_as_they_are_read_and_load_again(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    model, data, yaml = Path(name, "net.h5"), Path(name, "data.npz"), tmp_path / "mine.yaml"
    save_model(small_network(), model)
    images, labels = np.zeros([20, 16, 16, 3], np.uint8), np.arange(20) % 10
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    # As the message says for a path with a colon.
    assert main(["init", str(data), f"file:{model}"]) == 0
    text = capsys.readouterr().out
    yaml.write_text(text, encoding="utf-8")
    config = load_config(yaml)
    assert (config.model.name, config.data.path) == (f"file:{model}", str(data))
    assert name in text or not name.isprintable() or set(name) & {'"', "\\"}
    with_weights = parse_config(propose("resnet20", data, weights=f"{name}.h5"), "proposal")
    assert with_weights.model.weights == f"{name}.h5"
