"""A rank killed around the moment at which a run is merged in its training: nothing is lost."""

import json
import os
import random
import shutil
import signal
import time

from tests.faults.driver import INTERVAL_STEPS, Run, names_the_rank
from tests.system.runs import assert_equal_weights

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ranks, pytest.mark.timeout(3 * 3600)]
NUM_KILLS = int(os.environ.get("NUM_KILLS", 10))
MERGING = ("shrink.mode=merge", "checkpoint.num_kept=10")
MERGED = "nothing is left to prune"


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_killed_around_the_merge_a_run_ends_as_if_it_had_not_been(tmp_path, num_ranks, tried):
    choice = random.Random(20 + num_ranks)
    whole = Run(tmp_path / "whole", num_ranks, *MERGING)
    whole.finish()
    merge_step = early_merge(whole)["step"]
    first_step = (merge_step - 1) // INTERVAL_STEPS * INTERVAL_STEPS
    assert 0 < first_step < merge_step
    seconds = None
    for number in range(1 + NUM_KILLS):
        run, rank = Run(tmp_path / str(number), num_ranks, *MERGING), number % num_ranks
        shutil.copytree(whole.workdir, run.workdir)
        shutil.rmtree(run.workdir / "slim")
        for path in (run.workdir / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > first_step:
                shutil.rmtree(path)
        run.start()
        run.wait_for(rf"Resumed at step {first_step}\b")
        start = time.monotonic()
        if seconds is None:
            # Not killed: how long it takes to the merge on this machine.
            run.wait_for(MERGED)
            seconds, survived = time.monotonic() - start, lambda _: None
        else:
            survived = tried(f"a rank killed (signal 9) around a merge in training, {num_ranks} ranks")
            # Steps before the merge, the merge with its comparison and its new graph, and steps behind it.
            time.sleep(choice.uniform(0.0, 2.0 * seconds))
            if run.signal(rank, signal.SIGKILL):
                run.wait_for_end(time.monotonic())
                assert names_the_rank(run.log, rank), run.log[-4000:]
                where = "after" if MERGED in run.log else "before"
                print(f"rank {rank} killed {where} the merge, at step {run.last_logged_step()}", flush=True)
                run.start()
        run.wait_until_finished()
        assert early_merge(run) == early_merge(whole)
        assert_equal_weights(run.workdir, whole.workdir)
        survived(time.monotonic() - start)
        shutil.rmtree(run.workdir)


def early_merge(run):
    """Step and certificate of the merge in training, in the report of a run."""
    merge = json.loads((run.workdir / "slim" / "report.json").read_text())["early_merge"]
    assert "certificate" in merge, merge
    return merge
