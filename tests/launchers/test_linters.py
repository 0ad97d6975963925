"""The linters of the Dockerfile and of the shell scripts find nothing; no container engine is needed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.ranks.launcher import REPOSITORY

import pytest

SCRIPTS = sorted([*REPOSITORY.glob("launch/*.sh"), *REPOSITORY.glob("launch/*.sbatch"), REPOSITORY / ".ci" / "run"])


def lint(tool: str, *arguments: object) -> None:
    path = shutil.which(tool, path=f"{Path(sys.executable).parent}:/usr/bin")
    if path is None:
        pytest.skip(f"{tool} is missing: pip install 'resrep-dist[dev]'")
    result = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


def test_hadolint_finds_nothing_in_the_dockerfile():
    lint("hadolint", "Dockerfile")


def test_shellcheck_finds_nothing_in_the_scripts():
    lint("shellcheck", "--external-sources", *SCRIPTS)


def test_the_images_are_built_by_the_set_up_and_run_as_a_user_with_a_health_check():
    text = (REPOSITORY / "Dockerfile").read_text()
    assert re.findall(r"^FROM runtime AS (\S+)$", text, re.MULTILINE) == ["cpu", "gpu"]
    assert text.count("bash launch/setup.sh") == 2
    bases = re.findall(r"^ARG (?:SYSTEM|CUDA)=\S+?:(\S+)$", text, re.MULTILINE)
    assert len(bases) == 2 and all(re.search(r"\d", tag) for tag in bases)
    final = text[text.index("AS runtime") :]
    assert "\nUSER 1001\n" in final and 'CMD ["resrep", "doctor"]' in final and "setup.sh" not in final
