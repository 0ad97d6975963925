"""Horovod with NCCL, compiled and linked by the set-up on a machine that has nvcc and perhaps no GPU."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.ranks.launcher import REPOSITORY

import pytest

pytestmark = [pytest.mark.nccl_build, pytest.mark.timeout(3600)]
PROGRAM = """
import sys, resrep_dist, horovod, horovod.tensorflow as hvd
print("NCCL", hvd.nccl_built())
libraries = open("/proc/self/maps").read()
print([line.split()[-1] for line in libraries.splitlines() if "libnccl" in line][0])
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tracked files that was set up for GPUs."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not (cuda / "bin" / "nvcc").exists():
        pytest.skip(f"needs a CUDA toolkit; there is no {cuda}/bin/nvcc (CUDA_HOME names another)")
    folder = tmp_path_factory.mktemp("nccl") / "clone"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    environment = {**os.environ, "RESREP_DEVICE": "gpu", "RESREP_NCCL": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    environment.setdefault("UV_CACHE_DIR", os.path.expanduser("~/.cache/uv"))
    result = subprocess.run(
        ["bash", "launch/setup.sh"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Gloo" in result.stdout and "NCCL" in result.stdout
    return folder


def test_horovod_is_linked_with_the_nccl_of_tensorflows_wheel(clone):
    result = subprocess.run(
        [clone / ".venv/bin/python", "-c", PROGRAM], cwd=clone, capture_output=True, text=True, timeout=300, check=True
    )
    built, library = result.stdout.splitlines()[-2:]
    assert int(built.split()[1]) >= 20000, "NCCL's version, such as 23203"
    assert library == str(next(clone.glob(".venv/lib/python3.*/site-packages/nvidia/nccl/lib/libnccl.so.2")))


def test_two_ranks_on_cpus_agree_with_it(clone, tmp_path):
    environment = {**os.environ, "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(clone)}
    worker = clone / "tests" / "ranks" / "worker.py"
    command = ["horovodrun", "--gloo", "-np", "2", "python", str(worker), "identical,statistics", str(tmp_path)]
    result = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(list(tmp_path.glob("*/rank*_ended"))) == 4
