"""What anyone on the machine can read of a run: the command lines of its processes."""

import secrets
import subprocess
from pathlib import Path

from tests.faults.driver import Run

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ranks, pytest.mark.timeout(600)]


def processes_with(secret, name):
    """Process numbers whose /proc entry of that name holds the secret."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            if secret.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            # It has ended meanwhile.
            continue
    return found


def test_a_secret_in_the_environment_is_on_no_command_line(tmp_path, tried):
    secret = secrets.token_hex(16)
    run = Run(tmp_path, 2, CLOUD_SECRET_KEY=secret)
    survived = tried("a secret in the environment, looked for on all command lines")
    run.start()
    try:
        run.wait_for("prune step 5/")
        assert run.process.pid in processes_with(secret, "environ"), "it was planted, and can be found"
        assert not set(run.ranks()) - {0, 1} and len(run.ranks()) == 2
        assert processes_with(secret, "cmdline") == []
        assert secret not in subprocess.check_output(["ps", "axww", "-o", "args"], text=True)
        # Nor do the ranks have it, whose environment Horovod hands on.
        assert not {rank.pid for rank in run.ranks().values()} & set(processes_with(secret, "environ"))
    finally:
        run.stop()
    survived(0.0)
