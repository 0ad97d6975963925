"""Runs that an older version began: `data/` holds checkpoints that version 0.1.0 wrote in the middle of two runs."""

import json
import shutil
from pathlib import Path

import resrep_dist
from resrep_dist.config import build_config
from tests.networks import random_source, small_network

import numpy as np
import pytest

DATA = Path(__file__).with_name("data")


@pytest.mark.parametrize("mode, step, widths", [("off", 120, [8, 12, 16]), ("exact", 50, [7, 9, 8])])
def test_a_run_of_version_0_1_0_goes_on_where_it_stood_and_can_be_merged(tmp_path, mode, step, widths):
    shutil.copytree(DATA / mode, tmp_path / "checkpoints")
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    position = json.loads((checkpoint / "position.json").read_text())
    model, config = small_network(), build_config(position["config"])
    data = random_source(), random_source(64, seed=1)
    trainer = resrep_dist.Trainer(model, resrep_dist.trace(model), config, *data, workdir=tmp_path)
    trainer.start()
    assert trainer.step == int(trainer.state["iterations"]) == step
    assert trainer.state.num_chosen == position["num_chosen"] > 0
    assert trainer.state.channels.widths == widths
    with np.load(checkpoint / "state.npz") as arrays:
        assert set(arrays) == set(trainer.state)
        for name, variable in trainer.state.items():
            np.testing.assert_array_equal(variable.numpy(), arrays[name], err_msg=name)
    trainer.run()
    assert trainer.step > step and trainer.step >= trainer.num_steps
    _, certificate = resrep_dist.merge(trainer.model, trainer.graph, random_source(64, seed=1).images)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert kept == trainer.pruner.living_widths()
