"""Runs of the digits under a real launcher: started, killed, compared."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.networks import DIGITS_CONFIG
from tests.ranks.launcher import start_ranks

import numpy as np
import psutil

RESREP = str(Path(sys.executable).with_name("resrep"))


def train_command(workdir: Path, *overrides: str) -> list[str]:
    """`resrep train` of the demo's configuration with some settings changed."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    return [RESREP, "train", str(DIGITS_CONFIG), "--workdir", str(workdir), *sets]


def wait_for(checkpoint: Path, process: subprocess.Popen, log: Path) -> None:
    """Wait until a run has written a checkpoint."""
    deadline = time.monotonic() + 900
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def signal_one_rank(number: signal.Signals, num_ranks: int, command: list[str], checkpoint: Path, log: Path) -> None:
    """Start a run, send its last rank a signal once the checkpoint is there, wait for all to end."""
    process = start_ranks(num_ranks, command, log)
    wait_for(checkpoint, process, log)
    ranks = [
        child for child in psutil.Process(process.pid).children(recursive=True)
        if child.cmdline()[1:3] == [RESREP, "train"]
    ]  # fmt: skip
    assert len(ranks) == num_ranks
    # The launcher starts them side by side, so their order is not that of their numbers.
    next(rank for rank in ranks if rank.environ()["HOROVOD_RANK"] == str(num_ranks - 1)).send_signal(number)
    assert process.wait(60) != 0
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


def assert_equal_weights(first: Path, second: Path) -> None:
    """The newest checkpoints of two runs are of one step and equal, bit for bit."""
    (name, expected), (other_name, received) = _newest_arrays(first), _newest_arrays(second)
    assert name == other_name and expected.keys() == received.keys()
    for key in expected:
        np.testing.assert_array_equal(expected[key], received[key], err_msg=key)


def _newest_arrays(workdir: Path) -> tuple[str, dict[str, np.ndarray]]:
    newest = sorted((workdir / "checkpoints").glob("step-*"))[-1]
    return newest.name, dict(np.load(newest / "state.npz"))
