"""Counts what was tried and survived, into `faults.json`."""

import json
from pathlib import Path

import pytest

_results: dict[str, dict] = {}


@pytest.fixture
def tried():
    """Call with a harm's name before it is done; what it returns is called with the seconds when it was survived."""

    def begin(harm):
        result = _results.setdefault(harm, {"tried": 0, "survived": 0, "worst_seconds": 0.0})
        result["tried"] += 1

        def survived(seconds):
            result["survived"] += 1
            result["worst_seconds"] = round(max(result["worst_seconds"], seconds), 1)

        return survived

    return begin


def pytest_sessionfinish(session):
    if _results and session.config.getoption("-m") == "faults":
        path = Path(session.config.rootpath) / "faults.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | _results, indent=1) + "\n")
