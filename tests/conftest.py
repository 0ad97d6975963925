"""What all tests share."""

import os
from pathlib import Path

# Before TensorFlow is imported anywhere.
import resrep_dist  # noqa: F401

import pytest


@pytest.fixture
def golden() -> Path:
    """The numbers of the authors' code: RESREP_GOLDEN, or the project's own copy."""
    return Path(os.environ.get("RESREP_GOLDEN", Path(__file__).parent / "golden" / "data"))
