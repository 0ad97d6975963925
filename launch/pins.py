"""Writes the versions that the set-up installs into pyproject.toml: `constraint-dependencies` of [tool.uv].

python launch/pins.py             adds what is missing and removes what nothing requires; other versions stay
python launch/pins.py --upgrade   takes the newest versions that the requirements allow
python launch/pins.py --check     changes nothing; fails if the file would change

It needs `uv` in PATH or in .venv, and a package registry or what uv has cached of it (UV_OFFLINE=1).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DEVICES = ("cpu", "gpu")
EXTRAS = ("prune", "torch-weights", "report", "onnx", "dev", "docs", "horovod-build")
"""What `launch/setup.sh` installs, with one of the devices."""
_BLOCK = re.compile(r"(?<=\nconstraint-dependencies = \[\n).*?(?=\n\]\n)", re.DOTALL)


def resolve(project: str, python: str) -> dict[str, str]:
    """Return the version of each package that uv chooses for a Python, by the text of a pyproject.toml.

    Raises:
        ValueError: If a package would have other versions on GPUs than on CPUs; the constraints have one for both.
    """
    versions: dict[str, str] = {}
    for device in DEVICES:
        for name, version in _resolve(project, python, (device, *EXTRAS)).items():
            if versions.setdefault(name, version) != version:
                raise ValueError(
                    f"{name}: Python {python}, received {versions[name]} and {version}, expected one version"
                )
    return versions


def _resolve(project: str, python: str, chosen: tuple[str, ...]) -> dict[str, str]:
    uv = shutil.which("uv") or ROOT / ".venv" / "bin" / "uv"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pyproject.toml"
        # The version is read from a file of the package, which is not copied.
        copy.write_text(project.replace('dynamic = ["version"]', 'version = "0"'))
        extras = [argument for extra in chosen for argument in ("--extra", extra)]
        output = subprocess.run(
            [uv, "pip", "compile", "-q", "--no-header", "--no-annotate", "--python-version", python, *extras, copy],
            cwd=folder, check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
    return dict(line.split("==") for line in output.split())


def merge(versions: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the constraints of all Pythons, sorted by name.

    Args:
        versions: For each Python, oldest first, the version of each package.
    """
    pythons, constraints = list(versions), []
    for name in sorted(set().union(*versions.values())):
        chosen = [versions[python].get(name) for python in pythons]
        starts = [i for i, version in enumerate(chosen) if i == 0 or version != chosen[i - 1]]
        for start, end in zip(starts, [*starts[1:], len(pythons)], strict=True):
            lower = [f"python_version >= '{pythons[start]}'"] if start else []
            upper = [f"python_version < '{pythons[end]}'"] if end < len(pythons) else []
            if chosen[start]:
                marker = " and ".join(lower + upper)
                constraints.append(f"{name}=={chosen[start]}" + (f"; {marker}" if marker else ""))
    return constraints


def fill(constraints: list[str]) -> str:
    """Return the constraints as lines of TOML."""
    # textwrap breaks at spaces, so those inside a constraint are replaced meanwhile.
    text = " ".join(f'"{constraint}",'.replace(" ", "\0") for constraint in constraints)
    lines = textwrap.wrap(text, 116, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines).replace("\0", " "), "    ")


def main() -> int:
    """Run the command; return 1 if --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--upgrade", action="store_true")
    choice.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    path = ROOT / "pyproject.toml"
    project = path.read_text()
    source = _BLOCK.sub("", project) if arguments.upgrade else project
    with ThreadPoolExecutor() as pool:  # each waits for the registry
        versions = dict(zip(PYTHONS, pool.map(partial(resolve, source), PYTHONS), strict=True))
    block = fill(merge(versions))
    written = _BLOCK.sub(lambda _: block, project)
    if arguments.check:
        if written != project:
            print("pyproject.toml: its constraint-dependencies are not what resolves; run `python launch/pins.py`")
        return int(written != project)
    path.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
