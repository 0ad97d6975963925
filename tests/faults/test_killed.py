"""Ranks killed at random moments of real runs: all ends, the rank is named, nothing is lost."""

import os
import random
import re
import signal
import time

from tests.faults.driver import INTERVAL_STEPS, Run, names_the_rank
from tests.system.runs import assert_equal_weights

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ranks, pytest.mark.timeout(3 * 3600)]
# Of each rank, and in all under supervision.
NUM_KILLS = int(os.environ.get("NUM_KILLS", 20))
# A checkpoint is written beside the training, and the log has a line every 5 steps.
WRITING_STEPS = 25


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole run by number of ranks, and its seconds."""
    runs = {}

    def run(num_ranks):
        if num_ranks not in runs:
            start = time.monotonic()
            made = Run(tmp_path_factory.mktemp("undisturbed"), num_ranks)
            made.finish()
            runs[num_ranks] = made.workdir, time.monotonic() - start
        return runs[num_ranks]

    return run


def wait_at_random(run, rank, choice, seconds):
    """Until the rank is there, and then for up to so many seconds while the run lives."""
    while rank not in run.ranks() and run.process.poll() is None:
        time.sleep(0.05)
    moment = time.monotonic() + choice.uniform(0.0, seconds)
    while time.monotonic() < moment and run.process.poll() is None:
        time.sleep(0.02)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_rank_killed_at_any_moment(tmp_path, num_ranks, tried, undisturbed):
    """Killed, started again, killed again: whenever a run ends, its weights are those of one that was never killed."""
    choice = random.Random(num_ranks)
    expected, seconds = undisturbed(num_ranks)
    num_kills, num_runs = 0, 0
    while num_kills < NUM_KILLS * num_ranks:
        run, last_step = Run(tmp_path / str(num_runs), num_ranks), 0
        while num_kills < NUM_KILLS * num_ranks:
            rank = num_kills % num_ranks
            run.start()
            wait_at_random(run, rank, choice, seconds)
            check_resumed(run, last_step)
            start = time.monotonic()
            if not run.signal(rank, signal.SIGKILL):
                # It came to its end before; the next moment is one of a new run.
                break
            survived = tried(f"a rank killed (signal 9), {num_ranks} ranks")
            ended_after = run.wait_for_end(start)
            assert run.process.returncode not in (0, 2, 143), run.log[-4000:]
            assert names_the_rank(run.log, rank), run.log[-4000:]
            last_step = run.last_logged_step() or last_step
            survived(ended_after)
            num_kills += 1
            print(f"rank {rank} killed at step {run.last_logged_step()}: ended after {ended_after:.1f} s", flush=True)
        else:
            run.start()
        run.wait_until_finished()
        check_resumed(run, last_step)
        assert_equal_weights(run.workdir, expected)
        num_runs += 1


def check_resumed(run, last_step):
    """At most one interval of checkpoints is lost, and what was done while the last one was being written."""
    if re.search("prune step", run.log):
        assert run.resumed_step() >= last_step - INTERVAL_STEPS - WRITING_STEPS, (last_step, run.log[-4000:])


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_supervised_run_goes_on_by_itself(tmp_path, num_ranks, tried, undisturbed):
    """Kill after kill, and nobody starts it again."""
    choice = random.Random(10 + num_ranks)
    expected, seconds = undisturbed(num_ranks)
    num_kills, num_runs = 0, 0
    while num_kills < NUM_KILLS:
        run = Run(tmp_path / str(num_runs), num_ranks, script="supervise.sh", MAX_RESTARTS=str(NUM_KILLS))
        run.start()
        num_restarts = 0
        while num_kills < NUM_KILLS:
            rank = choice.randrange(num_ranks)
            wait_at_random(run, rank, choice, seconds)
            start = time.monotonic()
            if not run.signal(rank, signal.SIGKILL):
                break
            survived = tried(f"a rank killed (signal 9) under launch/supervise.sh, {num_ranks} ranks")
            num_restarts += 1
            run.wait_for(rf"; restart {num_restarts} on {num_ranks} rank")
            survived(time.monotonic() - start)
            num_kills += 1
        run.wait_until_finished()
        assert_equal_weights(run.workdir, expected)
        num_runs += 1


def test_a_supervised_run_goes_on_with_fewer_ranks(tmp_path, tried):
    run = Run(tmp_path, 3, script="supervise.sh", FEWER_RANKS="1")
    run.start()
    try:
        for num_left in (2, 1):
            run.wait_for(rf"(?s)(on {num_left + 1} rank.*|\A.*)prune step")
            if num_left == 1:
                run.wait_for(r"(?s)restart 1 on 2 rank.*prune step")
            survived, start = tried("a rank killed under launch/supervise.sh, on with fewer ranks"), time.monotonic()
            run.ranks()[num_left].send_signal(signal.SIGKILL)
            run.wait_for(rf"restart {3 - num_left} on {num_left} rank")
            survived(time.monotonic() - start)
        assert run.process.wait(600) == 0, run.log[-4000:]
    finally:
        run.stop()
    assert (run.workdir / "slim" / "model.h5").exists()
