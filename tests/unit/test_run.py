from resrep_dist.config import load_config
from resrep_dist.errors import ConfigError
from resrep_dist.run import open_workdir
from tests.networks import DIGITS_CONFIG

import pytest

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
