"""Jobs of a real Slurm: two nodes on this machine. `bash launch/test.sh --slurm` runs all of these."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from tests.launchers.scripts import assert_same_slim_model, needs_mpi, ranks_of, sets
from tests.launchers.slurm_cluster import DAEMONS, SlurmCluster
from tests.ranks.launcher import REPOSITORY
from tests.system.runs import RESREP

import psutil
import pytest

_missing = [daemon for daemon in DAEMONS if not shutil.which(daemon)]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.ranks,
    needs_mpi,
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmctld and slurmd start as root"),
    pytest.mark.skipif(bool(_missing), reason=f"missing: {_missing}; apt-get install slurm-wlm munge"),
]
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]
LONG = "train.num_epochs=1000"


@pytest.fixture(scope="module")
def slurm():
    with SlurmCluster() as cluster:
        yield cluster


def submit(
    slurm: SlurmCluster, folder: Path, *overrides: str, options=(), script="slurm.sbatch", **variables: str
) -> str:
    """A short run as a job in `folder/run`, its log in `folder/log`."""
    options = [f"--output={folder}/log", *options]
    return slurm.sbatch(
        *options, f"launch/{script}", *sets(*overrides), WORKDIR=str(folder / "run"), **variables
    )  # fmt: skip


def wait_for_text(slurm: SlurmCluster, log: Path, pattern: str, timeout_seconds: float = 180) -> re.Match[str]:
    found: list[re.Match[str]] = []

    def is_there() -> bool:
        text = log.read_text() if log.exists() else ""
        found.extend(re.finditer(pattern, text))
        # What has failed is not waited for.
        assert found or "resrep: error:" not in text, text
        return bool(found)

    slurm.wait_until(is_there, timeout_seconds)
    return found[0]


def step_daemons(job: str) -> list[psutil.Process]:
    """What Slurm has running on the nodes for a job."""
    return [
        process for process in psutil.process_iter(["cmdline"])
        if f"slurmstepd: [{job}." in " ".join(process.info["cmdline"] or [])
    ]  # fmt: skip


def test_a_job_whose_ranks_never_started_is_not_taken_for_a_good_one(slurm, tmp_path):
    job = slurm.sbatch(f"--output={tmp_path}/log", "launch/slurm.sbatch", "--help", WORKDIR=str(tmp_path / "run"))
    assert slurm.wait_for_end(job) == "FAILED"
    log = (tmp_path / "log").read_text()
    assert "usage: resrep train" in log and "srun returned 0, but no run has come to its end" in log


@pytest.mark.slow
def test_a_job_on_two_nodes_trains_prunes_and_merges(slurm, tmp_path, mpirun):
    start = time.monotonic()
    # A thread for each rank, as under mpirun: sums in another number of threads are rounded otherwise.
    job = submit(slurm, tmp_path, "logging.interval_steps=1", options=[*TWO_NODES, "--cpus-per-task=1"])
    wait_for_text(slurm, tmp_path / "log", r"step 1/")
    print(f"from sbatch to the first step: {time.monotonic() - start:.1f} s")
    assert slurm.wait_for_end(job) == "COMPLETED", (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "2 ranks on 2 host(s), started by srun." in log and "2 tasks, SLURM_RESTART_COUNT=0" in log
    print(f"largest difference of a weight: {assert_same_slim_model(tmp_path / 'run', mpirun[0]):.2g}")


def test_rank_size_and_local_rank_are_slurms(slurm, tmp_path):
    code = (
        "import os; from resrep_dist import Cluster; from resrep_dist.distributed import environment as e; "
        "c = Cluster(); slurm = [os.environ['SLURM_' + name] for name in ('PROCID', 'NTASKS', 'LOCALID')]; "
        "print('ranks', c.rank, c.size, c.local_rank, e.launched_local_size(), *slurm, flush=True)"
    )
    script = tmp_path / "job"
    script.write_text(f'#!/bin/sh\nexec srun --mpi=pmix {REPOSITORY}/.venv/bin/python -c "{code}"\n')
    job = slurm.sbatch("--nodes=2", "--ntasks=3", f"--output={tmp_path}/log", script)
    assert slurm.wait_for_end(job) == "COMPLETED", (tmp_path / "log").read_text()
    found = sorted(re.findall(r"ranks (.*)", (tmp_path / "log").read_text()))
    # rank, size, local rank, ranks on this host; then what Slurm says of the first three.
    assert found == ["0 3 0 2 0 3 0", "1 3 1 2 1 3 1", "2 3 0 1 2 3 0"]


@pytest.mark.slow
def test_before_its_time_is_up_a_job_is_requeued_and_resumes_and_scancel_leaves_a_checkpoint(slurm, tmp_path):
    # Slurm counts time limits in minutes, and may send the signal a minute early.
    job = submit(slurm, tmp_path, LONG, options=[*TWO_NODES, "--time=2", "--signal=B:USR1@60"])
    log = tmp_path / "log"
    step = int(wait_for_text(slurm, log, r"resrep: stopped at step (\d+) as asked")[1])
    # Slurm lets a requeued job wait for two minutes, in which the nodes clear what the first start left; an
    # administrator need not wait longer than for that.
    slurm.wait_until(lambda: slurm.state(job)["JobState"] == "PENDING", 30)
    slurm.wait_until(lambda: not step_daemons(job), 30)
    # With more time, so that the resumed job is not stopped again before a busy machine makes its first steps.
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=30")
    resumed = wait_for_text(slurm, log, r"Resumed at step (\d+)")
    assert int(resumed[1]) == step
    text = log.read_text()
    assert "USR1, stopping after a checkpoint" in text
    # Appended, not overwritten.
    assert text.index("SLURM_RESTART_COUNT=0") < text.index("stopped at step") < text.index("SLURM_RESTART_COUNT=1")
    assert slurm.state(job)["Restarts"] == "1"

    # Slurm waits half a minute before it kills, in which a busy machine may not get through the first step's tracing.
    wait_for_text(slurm, log, r"Resumed at step[\s\S]*prune step \d+/")
    slurm.call("scancel", job)
    assert slurm.wait_for_end(job, 60) == "CANCELLED"
    slurm.wait_until(lambda: not ranks_of(tmp_path / "run"), 40)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not newest.suffix and int(newest.name[5:]) > step
    # Usable: one process goes on from it, without a launcher.
    command = [RESREP, "train", str(REPOSITORY / "configs/digits_resnet20.yaml"), "--workdir", str(tmp_path / "run")]
    with subprocess.Popen([*command, *sets(LONG)], stdout=subprocess.PIPE, text=True) as alone:
        try:
            assert any(f"Resumed at step {int(newest.name[5:])}" in line for line in alone.stdout)
        finally:
            alone.kill()


@pytest.mark.slow
def test_where_jobs_are_not_requeued_the_job_is_submitted_anew_up_to_a_cap(slurm, tmp_path):
    options = ["--no-requeue", "--time=30", "--cpus-per-task=2", "--gres=tape:1"]
    first = submit(slurm, tmp_path, LONG, options=options, MAX_RESTARTS="1")
    log = tmp_path / "log"
    wait_for_text(slurm, log, r"prune step \d+/")
    slurm.call("scancel", "--batch", "--signal=USR1", first)
    second = wait_for_text(slurm, log, r"Submitted batch job (\d+)")[1]
    assert slurm.wait_for_end(first, 60) == "FAILED"
    wait_for_text(slurm, log, r"Resumed at step [1-9]")
    state = slurm.state(second)
    assert [state[name] for name in ("TimeLimit", "CPUs/Task", "TresPerNode")] == ["00:30:00", "2", "gres:tape:1"]
    slurm.call("scancel", "--batch", "--signal=USR1", second)
    wait_for_text(slurm, log, r"1 restarts were allowed \(MAX_RESTARTS\)")
    slurm.wait_for_end(second, 60)
    assert slurm.call("squeue", "--noheader") == ""


@pytest.mark.slow
def test_a_killed_task_ends_the_job(slurm, tmp_path):
    job = submit(slurm, tmp_path, LONG, options=TWO_NODES)
    wait_for_text(slurm, tmp_path / "log", r"prune step \d+/")
    ranks = ranks_of(tmp_path / "run")
    assert len(ranks) == 2
    start = time.monotonic()
    ranks[-1].kill()
    assert slurm.wait_for_end(job, 60) == "FAILED"
    print(f"the job ended {time.monotonic() - start:.1f} s after the kill")
    slurm.wait_until(lambda: not ranks_of(tmp_path / "run"), 20)


@pytest.mark.slow
def test_an_array_of_three_targets_gives_three_models_and_one_table(slurm, tmp_path):
    targets = ["0.98", "0.95", "0.92"]
    job = slurm.sbatch(
        f"--output={tmp_path}/log-%a", "launch/slurm_array.sbatch", *sets(),
        WORKDIR=str(tmp_path / "sweep"), TARGETS=" ".join(targets),
    )  # fmt: skip
    assert slurm.wait_for_end(job, 400) == "COMPLETED"
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("log-*")))
    macs = []
    for target in targets:
        path = tmp_path / "sweep" / f"target-{target}" / "slim" / "report.json"
        assert path.exists(), logs
        report = json.loads(path.read_text())
        assert report["target_macs_fraction"] == float(target) and not report["target_missed"]
        macs.append(report["slim"]["macs"])
    assert macs == sorted(set(macs), reverse=True)
    table = (tmp_path / "sweep" / "comparison.txt").read_text()
    assert all(f"target-{target}" in table for target in targets)
    assert (tmp_path / "sweep" / "report.html").exists()
