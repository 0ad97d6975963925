"""Starts the launch scripts as a user does, on a run of less than a minute that does everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

from resrep_dist.models.files import load_model
from tests.ranks.launcher import REPOSITORY

import numpy as np
import psutil
import pytest

# Base, masks that die, a target that is met, a merge.
SHORT = [
    "model.name=python:tests.networks:small_resnet",
    "base.num_epochs=2", "base.warmup_epochs=1", "train.num_epochs=6", "prune.mask_start_epochs=0.5",
    "prune.mask_interval_steps=5", "prune.channels_per_update=32", "prune.target_macs_fraction=0.8",
    "prune.lasso_strength=0.15", "train.learning_rate=0.02", "prune.min_base_top1=0",
    "checkpoint.interval_steps=20", "logging.interval_steps=10",
]  # fmt: skip
# Open MPI refuses to run as root, where one usually is in a container, unless the first two are set. By the last a rank
# that waits leaves its core to others, of which there are some here: two files of tests run at a time.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
}  # fmt: skip
IS_SET_UP = Path(sys.prefix) == REPOSITORY / ".venv"


def has_mpi() -> bool:
    """Whether the scripts' own environment is this one, and its Horovod has MPI."""
    import horovod.tensorflow as horovod

    return IS_SET_UP and bool(horovod.mpi_built())


needs_mpi = pytest.mark.skipif(
    not has_mpi(),
    reason="Horovod here has no MPI: apt-get install openmpi-bin libopenmpi-dev, then RESREP_MPI=1 bash launch/test.sh",
)


def sets(*overrides: str) -> list[str]:
    """The arguments of a short run."""
    return [argument for override in (*SHORT, *overrides) for argument in ("--set", override)]


def start_script(name: str, workdir: Path, log: Path, *arguments: str, prefix=(), **variables: str) -> subprocess.Popen:
    """Start a script under `launch/`; its output goes to `log`."""
    environment = {**os.environ, **OPEN_MPI, "WORKDIR": str(workdir), **variables}
    environment.pop("PYTHONPATH", None)
    command = [*prefix, "bash", str(REPOSITORY / "launch" / name), *arguments]
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def run_script(name: str, workdir: Path, log: Path, *arguments: str, **options) -> tuple[int, str]:
    """The code that the script leaves with, and all that it printed."""
    process = start_script(name, workdir, log, *arguments, **options)
    try:
        code = process.wait(300)
    finally:
        end_all(process)
    return code, log.read_text()


def end_all(process: subprocess.Popen) -> None:
    """Leave nothing running, whatever became of the test."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()


def ranks_of(workdir: Path) -> list[psutil.Process]:
    """The processes that train in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "python" in Path(line[0] if line else "").name and "train" in line[2:3] and str(workdir) in line:
            found.append(process)
    return found


def assert_same_slim_model(first: Path, second: Path) -> float:
    """Two runs kept the same channels, with weights that differ by rounding; returns the largest difference."""
    reports = [json.loads((run / "slim" / "report.json").read_text()) for run in (first, second)]
    channels = [report["certificate"]["channels"] for report in reports]
    assert any(layer["kept"] < layer["original"] for layer in channels[0].values())
    assert channels[0] == channels[1]
    arrays = [dict(np.load(sorted((run / "checkpoints").glob("step-*"))[-1] / "state.npz")) for run in (first, second)]
    assert arrays[0].keys() == arrays[1].keys()
    for name in arrays[0]:
        np.testing.assert_allclose(arrays[0][name], arrays[1][name], rtol=1e-3, atol=1e-5, err_msg=name)
    slim = [load_model(run / "slim" / "model.h5").get_weights() for run in (first, second)]
    for weights in zip(*slim, strict=True):
        np.testing.assert_allclose(*weights, rtol=1e-3, atol=1e-5)
    return max(float(np.abs(arrays[0][name] - arrays[1][name]).max()) for name in arrays[0])
