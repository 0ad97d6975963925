"""The names of models and files in what `resrep init` proposes."""

from resrep_dist.cli.main import main
from resrep_dist.config.loading import parse_config
from resrep_dist.models.files import save_model
from resrep_dist.runs.proposal import propose
from tests.networks import small_network

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
