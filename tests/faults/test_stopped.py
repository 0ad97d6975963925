"""Ranks that stall, and signals to the script that started them."""

import re
import signal
import time

from tests.faults.driver import Run
from tests.system.runs import assert_equal_weights

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ranks, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("num_ranks, rank", [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_a_stopped_rank_is_named_and_ends_the_job(tmp_path, num_ranks, rank, tried):
    run = Run(tmp_path, num_ranks, "faults.stall_warning_seconds=6.0", "faults.stall_limit_seconds=15.0")
    run.start()
    run.wait_for("prune step 100/")
    survived = tried(f"a rank stalled (SIGSTOP), {num_ranks} ranks, limit 15 s")
    start = time.monotonic()
    assert run.signal(rank, signal.SIGSTOP)
    seconds = run.wait_for_end(start)
    assert run.process.returncode == 7, run.log[-4000:]
    assert re.search(rf"rank {rank} \(host \S+, process \d+\) does not answer", run.log), run.log[-4000:]
    if rank != 0:
        assert re.search(rf"No progress for [67] s in step \d+; rank {rank} \(", run.log), run.log[-4000:]
    survived(seconds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_signal_to_the_script_stops_all_with_a_checkpoint(tmp_path, num_ranks, number, tried):
    run = Run(tmp_path, num_ranks)
    run.start()
    run.wait_for("prune step 120/")
    survived, start = tried(f"{number.name} to launch/local.sh, {num_ranks} ranks"), time.monotonic()
    run.process.send_signal(number)
    seconds = run.wait_for_end(start, 30)
    assert run.process.returncode == 143, run.log[-4000:]
    (step,) = set(re.findall(r"resrep: stopped at step (\d+) as asked", run.log))
    assert (run.workdir / "checkpoints" / f"step-{int(step):08d}").exists()
    survived(seconds)


def test_a_second_signal_leaves_at_once_and_harms_no_file(tmp_path, tried):
    whole, run = Run(tmp_path / "whole", 2), Run(tmp_path / "stopped", 2)
    whole.finish()
    run.start()
    run.wait_for("prune step 120/")
    survived, start = tried("a second signal to launch/local.sh"), time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    run.process.send_signal(signal.SIGTERM)
    survived(run.wait_for_end(start, 30))
    run.finish()
    assert_equal_weights(run.workdir, whole.workdir)
