"""What Horovod's timeline says of a step on two ranks."""

import sys

from tests.ranks.launcher import run_ranks
from tests.ranks.timeline import NUM_STEPS, read_steps

import pytest

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timeline")
    # Large images, so that the backward pass takes longer than the way of the first gradients.
    command = [sys.executable, "-m", "tests.ranks.timeline", str(folder), "small", "96", "64"]
    code, log = run_ranks(2, command, folder / "log", HOROVOD_TIMELINE=str(folder / "timeline.json"))
    assert code == 0, log[-3000:]
    return read_steps(folder, 2)


def test_the_first_gradients_travel_before_the_last_ones_are_there(steps):
    num_early = sum(step.collectives["step_0"]["start"] < step.last_gradients["ready"] for step in steps)
    # Other processes may keep a rank from its core for a whole step.
    assert num_early >= NUM_STEPS // 2, f"in {num_early} of {NUM_STEPS} steps"


def test_a_step_has_at_most_eight_collectives(steps):
    for step in steps:
        assert 3 <= len(step.collectives) <= 8
        for times in step.collectives.values():
            assert step.start < times["ready"] <= times["end"] <= step.end and times["start"] < times["end"]
        # The rest says of the last gradients too whether they are finite.
        assert step.collectives["step_rest"]["ready"] >= step.last_gradients["ready"]
