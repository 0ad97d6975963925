"""Starts real Horovod ranks for the tests."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def start_ranks(num_ranks: int, command: list[str], log: Path, **variables: str) -> subprocess.Popen:
    """Start `command` under horovodrun in a process group of its own; its output goes to `log`."""
    names = ["PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH"]
    names += [name for name in os.environ if name.startswith("NCCL_")]
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment |= variables
    with open(log, "w") as file:
        return subprocess.Popen(
            ["horovodrun", "--gloo", "-np", str(num_ranks), *command],
            stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY, start_new_session=True,
        )  # fmt: skip


def run_ranks(
    num_ranks: int, command: list[str], log: Path, timeout_seconds: float = 550, **variables: str
) -> tuple[int, str]:
    """Exit code of horovodrun and all that it printed."""
    process = start_ranks(num_ranks, command, log, **variables)
    try:
        code = process.wait(timeout_seconds)
    finally:
        if process.poll() is None:
            process.kill()
    return code, log.read_text()
