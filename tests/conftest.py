"""What all tests share."""

import logging
import os
import signal
from pathlib import Path

# Before TensorFlow is imported anywhere.
import resrep_dist  # noqa: F401

import pytest

# A suite that a shell runs in the background is started with Ctrl-C ignored, and would hand that on to the runs that
# are to be stopped by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_of_the_package() -> None:
    """A test does not see the settings of the log that a command of an earlier one has made in this process."""
    logger = logging.getLogger("resrep_dist")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def golden() -> Path:
    """The numbers of the authors' code: RESREP_GOLDEN, or the project's own copy."""
    return Path(os.environ.get("RESREP_GOLDEN", Path(__file__).parent / "golden" / "data"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n` a worker takes a file at a time, and those of the launchers as one: their runs want both cores."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/launchers" if file.startswith("tests/launchers/") else file

    return ByFile(config, log)
