"""A run that goes on with another number of ranks."""

import json
import shutil
import sys
from pathlib import Path

from resrep_dist.data.order import sample_indices
from tests.ranks.launcher import run_ranks

import numpy as np
import pytest
import tensorflow as tf

pytestmark = [pytest.mark.faults, pytest.mark.ranks, pytest.mark.timeout(1200)]
WORKER = str(Path(__file__).with_name("resume_worker.py"))
BATCH_SIZE, NUM_SAMPLES = 32, 1437
# The checkpoint is in the second epoch, the end in the third.
CHECKPOINT_STEP, LAST_STEP = 60, 100


def work(num_ranks, folder, last_step):
    code, log = run_ranks(num_ranks, [sys.executable, WORKER, str(folder), str(last_step)], folder / f"{last_step}.log")
    assert code == 0, log[-4000:]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run by number of ranks that has gone a little beyond its checkpoint."""
    folders = {}

    def start(num_ranks):
        if num_ranks not in folders:
            folders[num_ranks] = tmp_path_factory.mktemp(f"started{num_ranks}")
            work(num_ranks, folders[num_ranks], CHECKPOINT_STEP + 7)
        return folders[num_ranks]

    return start


def read_batches(folder):
    """Sample indices of each global step, in the order of the ranks; of a step made twice the later one counts."""
    starts = {}
    for path in sorted(folder.glob("samples/*.csv")):
        _, _, first_step, _, rank, _, _ = path.stem.split("-")
        lines = [[int(number) for number in line.split(",")] for line in path.read_text().splitlines()]
        starts.setdefault(int(first_step), {})[int(rank)] = {step: indices for step, *indices in lines}
    batches = {}
    for first_step in sorted(starts):
        ranks = [starts[first_step][rank] for rank in sorted(starts[first_step])]
        for step in ranks[0]:
            batches[step] = [index for rank in ranks for index in rank.get(step, [])]
    return batches


@pytest.mark.parametrize("before, after", [(2, 1), (2, 4), (4, 3)])
def test_on_another_number_of_ranks_all_goes_on_as_it_was(tmp_path, before, after, tried, started):
    survived = tried("resumed on another number of ranks (2 to 1, 2 to 4, 4 to 3)")
    folder = shutil.copytree(started(before), tmp_path / "copy")
    work(after, folder, LAST_STEP)
    checkpoint = folder / "run" / "checkpoints" / f"step-{CHECKPOINT_STEP:08d}"
    saved = dict(np.load(checkpoint / "state.npz"))
    assert any(name.startswith("velocity/") for name in saved)
    assert any((array == 0).any() for name, array in saved.items() if name.endswith("mask"))
    for rank in range(after):
        state = dict(np.load(folder / f"started-at-{CHECKPOINT_STEP}-rank-{rank}-of-{after}.npz"))
        assert state.pop("num_chosen") == json.loads((checkpoint / "position.json").read_text())["num_chosen"] > 0
        assert state.keys() == saved.keys()
        for name in saved:
            np.testing.assert_array_equal(state[name], saved[name], err_msg=f"{name}, rank {rank}")
    batches = read_batches(folder / "run")
    positions = tf.range(LAST_STEP * BATCH_SIZE, dtype=tf.int64)
    expected = sample_indices(positions, NUM_SAMPLES, seed=1).numpy()
    seen = np.concatenate([batches[step] for step in range(LAST_STEP)])
    np.testing.assert_array_equal(seen, expected)
    for epoch in range(2):
        assert sorted(seen[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES]) == list(range(NUM_SAMPLES))
    np.testing.assert_array_equal(
        np.load(folder / f"rates-{before}-ranks.npy"), np.load(folder / f"rates-{after}-ranks.npy")
    )
    survived(0.0)
