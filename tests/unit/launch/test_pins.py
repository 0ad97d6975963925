"""The pinned versions of the set-up."""

import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[3] / "launch"


@pytest.fixture
def pins(monkeypatch):
    monkeypatch.syspath_prepend(str(LAUNCH))
    import pins

    yield pins
    del sys.modules["pins"]


def test_versions_that_differ_between_pythons_get_markers(pins):
    versions = {
        "3.10": {"same": "1.0", "older": "1", "backport": "4"},
        "3.11": {"same": "1.0", "older": "2"},
        "3.12": {"same": "1.0", "older": "2"},
        "3.13": {"same": "1.0", "older": "3", "newcomer": "5"},
    }
    assert pins.merge(versions) == [
        "backport==4; python_version < '3.11'",
        "newcomer==5; python_version >= '3.13'",
        "older==1; python_version < '3.11'",
        "older==2; python_version >= '3.11' and python_version < '3.13'",
        "older==3; python_version >= '3.13'",
        "same==1.0",
    ]


def test_lines_are_short_and_no_constraint_is_broken(pins):
    constraints = [f"package{n}==1.{n}; python_version < '3.11'" for n in range(20)]
    lines = pins.fill(constraints).split("\n")
    assert max(map(len, lines)) <= 120
    assert [piece.strip('" ') for line in lines for piece in line.split(",") if piece.strip()] == constraints


def test_every_supported_python_is_resolved(pins):
    project = (LAUNCH.parent / "pyproject.toml").read_text()
    assert f'requires-python = ">={pins.PYTHONS[0]},<3.{int(pins.PYTHONS[-1].split(".")[1]) + 1}"' in project
