"""Two jobs on one folder."""

import json
import logging
import os
import subprocess
import sys
import threading
import time

from resrep_dist.distributed import lease
from resrep_dist.distributed.lease import Lease
from resrep_dist.errors import UserError

import pytest

HOLDS = """
import sys, time
from pathlib import Path
from resrep_dist.distributed.lease import Lease
Lease(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def logged(monkeypatch):
    """What the command line's log settings keep from the root logger reaches `caplog`."""
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease of the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def change(folder, age_seconds=0.0, **fields):
    path = folder / lease.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    os.utime(path, (time.time() - age_seconds,) * 2)


def test_the_second_job_is_refused_by_name_and_the_first_keeps_its_lease(tmp_path, holder):
    before = (tmp_path / lease.NAME).read_text()
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on host .*; stop that job or use another"):
        Lease(tmp_path).take()
    assert os.listdir(tmp_path) == [lease.NAME] and (tmp_path / lease.NAME).read_text() == before


def test_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    mine = Lease(tmp_path)
    mine.take()
    assert f"taken over from process {holder.pid}" in caplog.text and "that process is dead" in caplog.text
    assert json.loads((tmp_path / lease.NAME).read_text())["process"] == os.getpid()
    mine.release()
    assert os.listdir(tmp_path) == []


def test_a_process_number_that_was_given_anew_does_not_count(tmp_path, holder):
    change(tmp_path, process_start_time=time.time() - 1e6)
    mine = Lease(tmp_path)
    mine.take()
    mine.release()


def test_of_another_host_only_a_stale_lease_or_the_same_slurm_job_is_taken_over(tmp_path, holder, monkeypatch, caplog):
    elsewhere = {"host": "n2", "namespace": "another boot", "slurm_job_id": "77"}
    change(tmp_path, age_seconds=lease.STALE_SECONDS - 5, **elsewhere)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(UserError, match="host n2, Slurm job 77, started .* if it is dead, start again in [567] s"):
        Lease(tmp_path).take()
    change(tmp_path, age_seconds=lease.STALE_SECONDS + 5)
    for reason in ("it was not renewed for 65 s", "this is the same Slurm job, 77, started again"):
        mine = Lease(tmp_path)
        mine.take()
        assert reason in caplog.text
        # A lease that is lost would end this process.
        mine.release()
        with open(tmp_path / lease.NAME, "x") as file:
            json.dump({"token": "other", **elsewhere}, file)
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")


def test_a_second_command_in_the_slurm_job_of_a_live_run_is_refused(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    change(tmp_path, age_seconds=5, host="n2", namespace="another boot", slurm_job_id="77", slurm_restart_count=0)
    with pytest.raises(UserError, match="in use by .* on host n2, Slurm job 77"):
        Lease(tmp_path).take()


def test_of_eight_at_once_one_gets_it(tmp_path, holder):
    holder.kill()
    holder.wait()
    leases, taken = [Lease(tmp_path) for _ in range(8)], []

    def take(one):
        try:
            one.take()
            taken.append(one)
        except UserError:
            pass

    threads = [threading.Thread(target=take, args=[one]) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].release()
    assert os.listdir(tmp_path) == []


def test_a_lease_is_renewed_made_again_and_its_loss_ends_the_process(tmp_path):
    code = HOLDS.replace("Lease(", "import resrep_dist.distributed.lease as m; m.RENEW_SECONDS = 0.1; Lease(")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "taken\n"
        change(tmp_path, age_seconds=1000)
        time.sleep(1.0)
        assert time.time() - (tmp_path / lease.NAME).stat().st_mtime < 1.0
        (tmp_path / lease.NAME).unlink()
        time.sleep(1.0)
        change(tmp_path, token="another", process=1)
        assert process.wait(10) == 2
        assert process.stderr.read().startswith(f"resrep: error: --workdir {tmp_path}: taken over by process 1 on")


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"lease.json cannot be written there \(Not a directory\)"):
        Lease(tmp_path / "file" / "run").take()
