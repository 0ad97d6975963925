"""What all tests share."""

import os
import signal
from pathlib import Path

# Before TensorFlow is imported anywhere.
import resrep_dist  # noqa: F401

import pytest

# A suite that a shell runs in the background is started with Ctrl-C ignored, and would hand that on to the runs that
# are to be stopped by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def golden() -> Path:
    """The numbers of the authors' code: RESREP_GOLDEN, or the project's own copy."""
    return Path(os.environ.get("RESREP_GOLDEN", Path(__file__).parent / "golden" / "data"))
