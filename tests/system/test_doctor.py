"""`resrep doctor` in this environment, and in ones where something is missing."""

import io
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from resrep_dist.cli import doctor

import pytest
from rich.console import Console

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:]
import rich.console, resrep_dist.cli.doctor
sys.exit(resrep_dist.cli.doctor.run_doctor(rich.console.Console(width=200)))
"""


def run_with_only(folder: Path, **packages: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor in a Python that sees rich, this package, and the metadata of `packages`."""
    for name in ("rich", "markdown_it", "mdurl", "pygments"):
        source = Path(__import__(name).__file__).parent
        (folder / name).symlink_to(source)
    # The requirements of this package, which say which versions are wanted.
    metadata_folder = folder / f"resrep_dist-{metadata.version('resrep-dist')}.dist-info"
    metadata_folder.mkdir()
    (metadata_folder / "METADATA").write_text(metadata.distribution("resrep-dist").read_text("METADATA"))
    for name, version in packages.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT, str(REPOSITORY), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


def test_nothing_is_missing_here() -> None:
    output = io.StringIO()
    code = doctor.run_doctor(Console(file=output, width=200))
    text = output.getvalue()
    assert code == 0, text
    assert f"{metadata.version('horovod')} with Gloo" in text
    assert "horovodrun" in text
    assert "seen by TensorFlow" in text


def test_bare_environment_names_the_mend_of_everything(tmp_path: Path) -> None:
    result = run_with_only(tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    for wanted in (
        "==2.21.0",
        "tf-keras==2.21.0",
        "'numpy<2.3,>=2.2'",
        "kerassurgeon==0.2.0 'importlib-metadata<8' zipp",
    ):
        assert wanted in result.stdout
    assert "Horovod: it is missing" in result.stdout
    assert "resrep doctor   # again, when TensorFlow is there" in result.stdout


def test_other_tensorflow_says_why_it_does_not_do(tmp_path: Path) -> None:
    result = run_with_only(tmp_path, tensorflow_cpu="2.19.0")
    assert result.returncode == 1
    assert "it must be 2.21, which tf-keras==2.21.0 is for" in result.stdout
    assert "uninstall" in result.stdout and "tensorflow-cpu==2.21.0" in result.stdout


def test_missing_horovod_gets_the_command_for_this_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('a broken library')\n")
    result = run_with_only(tmp_path, tensorflow="2.21.0")
    assert result.returncode == 1
    assert f"{tmp_path}/tensorflow/include/external/highwayhash:" in result.stdout
    assert "--no-build-isolation" in result.stdout and "horovod==0.28.1" in result.stdout
    assert "'cmake<4'" in result.stdout and "'setuptools<81'" in result.stdout
    assert "/launch/horovod/include" in result.stdout and "/launch/horovod/cmake.sh" in result.stdout
    assert "a broken library" in result.stdout and "Traceback" not in result.stdout + result.stderr


def test_horovod_that_does_not_load_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    [finding] = doctor._horovod()
    assert "does not start" in finding.problem
    assert "--force-reinstall" in finding.fix[-1]
