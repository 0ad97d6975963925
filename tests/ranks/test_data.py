"""An image that cannot be read, on one rank of two: the job must name it and end."""

import sys

from resrep_dist.data.order import sample_indices
from tests.images import write_image_folders
from tests.networks import small_config, sources_of
from tests.ranks.launcher import run_ranks

import pytest
import tensorflow as tf


@pytest.mark.ranks
@pytest.mark.slow
def test_a_broken_image_on_the_second_rank_is_named_and_ends_the_job(tmp_path):
    data = {"source": "imagefolder", "path": str(write_image_folders(tmp_path / "data")), "global_batch_size": 10}
    model = {"num_classes": 3, "image_size": 16}
    config = small_config(data=data, model=model, base={"num_epochs": 3})
    # The base phase has seed 0; its third batch, the half of the second rank.
    index = int(sample_indices(tf.constant([2 * 10 + 7], tf.int64), 50, seed=0)[0])
    broken = sources_of(config)[0].describe(index)
    with open(broken, "wb") as file:
        file.write(b"\xff\xd8\xffbroken")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "resrep_dist", "train", str(tmp_path / "config.yaml")]
    code, log = run_ranks(2, [*command, "--workdir", str(tmp_path / "run")], tmp_path / "log", timeout_seconds=200)
    assert code != 0
    assert f"resrep: error: {broken}: " in log, log[-3000:]
