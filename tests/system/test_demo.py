"""The demo, whole: quality over seeds, and a rank killed in the middle of it."""

import json
import signal
import statistics

from tests.ranks.launcher import run_ranks
from tests.system import runs

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(3600)]
SEEDS = (0, 1, 2)


def run_demo(folder, num_ranks, seed):
    code, log = run_ranks(num_ranks, runs.train_command(folder, f"seed={seed}"), folder.with_suffix(".log"), 1800)
    assert code == 0, log[-4000:]
    return folder


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """One demo on two ranks for each seed."""
    folder = tmp_path_factory.mktemp("demos")
    return [run_demo(folder / f"seed{seed}", 2, seed) for seed in SEEDS]


def test_over_seeds_the_slim_model_is_as_good_and_meets_the_target(demos):
    losses = []
    for folder in demos:
        report = json.loads((folder / "slim" / "report.json").read_text())
        base, slim = report["base"], report["slim"]
        print(
            f"{folder.name}: base {base['top1']:.2f}, trained {report['trained']['top1']:.2f}, "
            f"slim {slim['top1']:.2f}, multiply-adds {slim['macs'] / base['macs']:.4f}, "
            f"largest difference {report['certificate']['max_relative_difference']:.2g}"
        )
        losses.append(base["top1"] - slim["top1"])
        assert slim["macs"] <= 0.47 * base["macs"] and not report["target_missed"]
        assert report["num_masked_alive"] == 0
        assert report["certificate"]["max_relative_difference"] <= 1e-4
    assert statistics.median(losses) <= 0.3


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_rank_killed_during_the_demo_changes_no_bit_of_its_result(tmp_path, demos, num_ranks):
    undisturbed = demos[0] if num_ranks == 2 else run_demo(tmp_path / "undisturbed", num_ranks, 0)
    command = runs.train_command(tmp_path / "run", "seed=0")
    # After the first masks and before the last of them.
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000200"
    runs.signal_one_rank(signal.SIGKILL, num_ranks, command, checkpoint, tmp_path / "killed.log")
    assert not (tmp_path / "run" / "slim").exists()
    code, log = run_ranks(num_ranks, command, tmp_path / "resumed.log", 1800)
    assert code == 0, log[-3000:]
    assert "Resumed at step 200" in log
    runs.assert_equal_weights(tmp_path / "run", undisturbed)
