"""The launch scripts on this machine: horovodrun and mpirun."""

import json
import signal
import time

from tests.launchers.scripts import (
    IS_SET_UP,
    assert_same_slim_model,
    end_all,
    needs_mpi,
    ranks_of,
    run_script,
    sets,
    start_script,
)  # fmt: skip
from tests.ranks.launcher import REPOSITORY
from tests.system.runs import wait_for

import pytest

pytestmark = pytest.mark.ranks
LAUNCHERS = [
    pytest.param("mpirun.sh", marks=needs_mpi),
    pytest.param("local.sh", marks=pytest.mark.skipif(not IS_SET_UP, reason="the scripts use .venv: launch/test.sh")),
]


@needs_mpi
def test_mpirun_trains_prunes_and_merges(mpirun):
    workdir, log = mpirun
    report = json.loads((workdir / "slim" / "report.json").read_text())
    assert report["slim"]["macs"] < report["base"]["macs"] and not report["target_missed"]
    assert "2 ranks on 1 host(s), started by mpirun." in log


@needs_mpi
def test_horovods_timeline_has_the_collective_of_the_step(mpirun):
    text = (mpirun[0].parent / "timeline.json").read_text()
    # Horovod leaves the list open, and trace viewers read it so.
    events = json.loads(text.rstrip().rstrip(",").removesuffix("]").rstrip().rstrip(",") + "]")
    names = {str(event["args"].get("name")) for event in events if event.get("name") == "process_name"}
    assert any("step" in name for name in names), sorted(names)
    assert {"NEGOTIATE_ALLREDUCE", "ALLREDUCE"} <= {event.get("name") for event in events}


@needs_mpi
@pytest.mark.slow
def test_horovodrun_and_mpirun_end_with_the_same_model(tmp_path, mpirun):
    code, log = run_script("local.sh", tmp_path / "run", tmp_path / "log", *sets())
    assert code == 0, log[-4000:]
    print(f"largest difference of a weight: {assert_same_slim_model(mpirun[0], tmp_path / 'run'):.2g}")


@pytest.mark.slow
@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_script_becomes_a_checkpoint(tmp_path, script, number):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = start_script(script, workdir, log, *sets("train.num_epochs=1000"))
    try:
        wait_for(workdir / "checkpoints" / "step-00000020", process, log)
        process.send_signal(number)
        assert process.wait(60) == 143
    finally:
        end_all(process)
    assert "resrep: stopped at step" in log.read_text() and not ranks_of(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("script", LAUNCHERS)
def test_a_killed_rank_ends_the_job(tmp_path, script):
    workdir, log = tmp_path / "run", tmp_path / "log"
    more = {"VARIABLE": "nobody sees this", "CORES": "1"}
    process = start_script(script, workdir, log, *sets("train.num_epochs=1000"), **more)
    try:
        wait_for(workdir / "checkpoints" / "step-00000020", process, log)
        ranks = ranks_of(workdir)
        assert len(ranks) == 2
        for rank in ranks:
            assert "VARIABLE" not in rank.environ() and rank.environ()["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == "0"
        if script == "mpirun.sh":
            first, second = (set(rank.cpu_affinity()) for rank in ranks)
            assert first and second and not first & second, "bound, each to its own"
        start = time.monotonic()
        ranks[-1].kill()
        assert process.wait(60) not in (0, 143)
        print(f"{script} ended {time.monotonic() - start:.1f} s after the kill")
    finally:
        end_all(process)
    assert not ranks_of(workdir)


def test_the_scripts_are_short_and_end_alike():
    scripts = ["local.sh", "mpirun.sh", "slurm.sbatch", "slurm_array.sbatch"]
    lines = {name: (REPOSITORY / "launch" / name).read_text().splitlines() for name in scripts}
    assert all(len(text) < 40 and "set -euo pipefail" in text for text in lines.values())
    assert len({text[-1] for text in lines.values()}) == 1
