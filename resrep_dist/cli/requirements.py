"""What this package requires, and what is installed, by the metadata of the packages; nothing is imported."""

import re
from importlib import metadata


def installed_version(name: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str | None = None) -> list[str]:
    """Return the requirements of this package without their markers: those of an extra, or all."""
    lines = (line.partition(";") for line in metadata.requires("resrep-dist") or ())
    return [name.strip() for name, _, marker in lines if extra is None or re.search(f"[\"']{extra}[\"']", marker)]


def required_versions(name: str) -> str:
    """Return the versions of a package that this one requires, such as "==0.28.1"."""
    for requirement in requirements():
        if match := re.fullmatch(rf"{name}(?:\[[\w,-]+\])?\s*\(?([<>=!~][^)]*)\)?", requirement):
            return match[1]
    raise ValueError(f"resrep-dist does not require {name}")


def lowest_series(required: str) -> str:
    """Return the first two numbers of the lowest version that is allowed."""
    match = re.search(r"[=>]=(\d+\.\d+)", required)
    assert match, required
    return match[1]


def is_series(version: str | None, required: str) -> bool:
    """Return True if a version has the first two numbers of the lowest version that is allowed."""
    return version is not None and ".".join(version.split(".")[:2]) == lowest_series(required)
