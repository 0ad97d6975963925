"""What the tests of the launchers share."""

import signal
from pathlib import Path

from tests.launchers.scripts import run_script, sets

import pytest


@pytest.fixture(scope="session", autouse=True)
def a_time_limit_from_outside_leaves_nothing_behind():
    """SIGTERM ends the tests as Ctrl-C does, so that what they started goes with them."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def mpirun(tmp_path_factory) -> tuple[Path, str]:
    """A run under mpirun from the base to the slim model, and what it printed: the other launchers end as it does."""
    folder = tmp_path_factory.mktemp("mpirun")
    # Not bound: TensorFlow rounds otherwise in a process that sees one core.
    timeline = str(folder / "timeline.json")
    code, log = run_script("mpirun.sh", folder / "run", folder / "log", *sets(), HOROVOD_TIMELINE=timeline)
    assert code == 0, log[-4000:]
    return folder / "run", log
