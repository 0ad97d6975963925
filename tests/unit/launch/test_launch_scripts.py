"""launch/ranks.sh around stand-ins for the launchers: which variables they get, which code the script leaves with."""

import itertools
import os
import shutil
import signal
import subprocess
import time

from tests.ranks.launcher import REPOSITORY

import pytest

SCRIPT = "set -euo pipefail\nsource launch/ranks.sh\nstart_ranks {launcher}\n"
# Ends some time after the wish to stop, as its ranks do.
LAUNCHER = """#!/bin/bash
env
echo END
while [[ ! -e run/$RESREP_STOP ]]; do sleep 0.1; done
{end}
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "ranks.sh", tmp_path / "launch")

    def start(launcher, end, **environment):
        program = tmp_path / ".venv" / "bin" / launcher
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(LAUNCHER.replace("{end}", end))
        program.chmod(0o755)
        return subprocess.Popen(
            ["bash", "-c", SCRIPT.format(launcher=launcher)], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "WORKDIR": "run", **environment},
        )  # fmt: skip

    return start


def read_environment(process):
    """The names of the launcher's variables; it runs from then on."""
    return {line.partition("=")[0] for line in itertools.takewhile("END\n".__ne__, process.stdout)}


def stop(process):
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


@pytest.mark.parametrize(
    "launcher, end, code",
    [
        # What the launchers make of a rank's code, and the code itself.
        ("mpirun", 'echo 143 >"$RESREP_EXIT_CODES"; exit 1', 143),
        # A rank that leaves as asked writes its code down; one that dies does not.
        ("mpirun", "exit 1", 1),
        ("srun", "exit 1", 1),
        ("mpirun", "exit 0", 0),
        # A failure on the way to the checkpoint is no clean stop.
        ("horovodrun", 'echo 6 >"$RESREP_EXIT_CODES"; exit 1', 6),
        ("srun", "exit 6", 6),
        ("srun", "exit 143", 143),
    ],
)
def test_after_a_wish_to_stop_the_ranks_code_counts(start, launcher, end, code):
    process = start(launcher, end)
    read_environment(process)
    assert stop(process) == code


def test_a_second_start_on_a_folder_in_use_leaves_alone_what_stops_the_first(start, tmp_path):
    first = start("mpirun", "exit 0")
    read_environment(first)
    wish = tmp_path / "run" / "stop"
    wish.parent.mkdir()
    wish.touch()
    second = start("horovodrun", "exit 2")
    read_environment(second)
    assert wish.exists(), "the first may not have seen it yet"
    wish.unlink()
    assert stop(second) == 2
    assert first.poll() is None and os.listdir(wish.parent) == []
    assert stop(first) == 0
    assert os.listdir(wish.parent) == []


def test_in_an_allocation_of_one_node_the_ranks_code_counts_too(start):
    # As in `srun --pty bash`: supervise.sh and FEWER_RANKS go by it.
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    process = start("mpirun", 'echo 2 >"$RESREP_EXIT_CODES"; exit 1', SLURMD_NODENAME="n1", **job)
    read_environment(process)
    assert stop(process) == 2
    # Where the shell itself is on no node, the ranks' file would be on another machine.
    process = start("horovodrun", "exit 1", **job)
    assert "RESREP_EXIT_CODES" not in read_environment(process) and stop(process) == 143


def test_a_second_signal_ends_the_launcher(start):
    process = start("mpirun", 'echo 8 >"$RESREP_EXIT_CODES"; sleep 60')
    read_environment(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None and stop(process) == 143


@pytest.mark.parametrize("launcher, gets_slurm", [("horovodrun", False), ("srun", True), ("mpirun", True)])
def test_a_launcher_gets_named_variables_and_its_own(start, launcher, gets_slurm):
    process = start(
        launcher, "exit 0", SLURM_JWT="secret", NCCL_IB_HCA="mlx5", PASSWORD="secret", HOROVOD_CYCLE_TIME="5",
        RESREP_TERMINAL="/dev/null", OMPI_MCA_pml="ob1", PASS="XLA_FLAGS OTHER", XLA_FLAGS="a b",
    )  # fmt: skip
    names = read_environment(process)
    stop(process)
    assert {"XLA_FLAGS", "NCCL_IB_HCA", "HOROVOD_CYCLE_TIME", "PATH"} <= names and "PASSWORD" not in names
    assert ("SLURM_JWT" in names) == ("OMPI_MCA_pml" in names) == gets_slurm


def test_lines_of_rank_0_have_no_prefix_and_the_last_words_are_printed(tmp_path):
    (tmp_path / "launch").mkdir()
    for name in ("ranks.sh", "local.sh"):
        shutil.copy(REPOSITORY / "launch" / name, tmp_path / "launch")
    (tmp_path / "launch" / "setup.sh").touch()
    told = (
        r"[0]<stdout>:step 1\n[1]<stdout>:lost\n[1,0]<stdout>: with Open MPI 4\n[prterun-a-7@1,0]<stdout>: with 5\n"
        r"[10]<stdout>:tenth\nlast, without an end"
    )
    complaint = r"WARNING: All log messages before absl::InitializeLog() is here\nI0 oneDNN custom operations are on\n"
    (tmp_path / "horovodrun").write_text(
        f"#!/bin/bash\nprintf '{told}'\nprintf '{complaint}[0]<stderr>:resrep: error: no\\ncore dumped' >&2\nexit 3\n"
    )
    (tmp_path / "horovodrun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": "run"}
    process = subprocess.run(
        ["bash", "launch/local.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 3
    assert process.stdout == (
        "step 1\n[1]<stdout>:lost\nwith Open MPI 4\nwith 5\n[10]<stdout>:tenth\nlast, without an end"
    )
    assert process.stderr == "resrep: error: no\ncore dumped"


def test_on_several_hosts_the_launchers_own_code_says_nothing_against_a_clean_stop(start):
    process = start("mpirun", "exit 1", HOSTS="here:1,there:1")
    read_environment(process)
    assert stop(process) == 143


@pytest.mark.parametrize(
    "variables, has_gpus, expected",
    [
        ({"RANKS": "2"}, True, "slot:PE=4 --bind-to core"),
        ({"RANKS": "16", "HOSTS": "here:4,there:12"}, True, "slot:PE=2 --bind-to core"),
        ({"RANKS": "2", "CORES": "3"}, True, "slot:PE=3 --bind-to core"),
        ({"RANKS": "2", "CORES": "0"}, True, "slot --bind-to none"),
        ({"RANKS": "9"}, True, "slot --bind-to none"),
        ({"RANKS": "2"}, False, "slot --bind-to none"),
    ],
)
def test_mpirun_gives_each_rank_its_cores_where_there_are_gpus(tmp_path, variables, has_gpus, expected):
    (tmp_path / "launch").mkdir()
    for name in ("ranks.sh", "mpirun.sh"):
        shutil.copy(REPOSITORY / "launch" / name, tmp_path / "launch")
    (tmp_path / "launch" / "setup.sh").touch()
    programs = {
        "mpirun": 'echo "$*"',
        "nvidia-smi": "exit 0" if has_gpus else "exit 9",
        # Two sockets of four cores with two threads each.
        "lscpu": "echo '# CORE,SOCKET'; for core in {0..7} {0..7}; do echo $core,$((core / 4)); done",
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": "run", **variables}
    process = subprocess.run(
        ["bash", "launch/mpirun.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0 and f"--map-by {expected} -x" in process.stdout, process.stderr + process.stdout


def test_mpirun_says_what_to_do_where_horovod_has_no_mpi(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "mpirun.sh", tmp_path / "launch")
    # As a set-up that finds no mpicxx.
    (tmp_path / "launch" / "setup.sh").write_text("mkdir .venv; echo cpu nccl=0 mpi=0 >.venv/setup.features\n")
    (tmp_path / "mpirun").write_text("#!/bin/bash\n")
    (tmp_path / "mpirun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "launch/mpirun.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2 and "RESREP_MPI=1 bash launch/setup.sh" in process.stderr
