"""launch/horovod: which wheel of Horovod the set-up takes, and what is changed in its sources before a build."""

import fcntl
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.ranks.launcher import REPOSITORY

import pytest

SCRIPT = """
set -euo pipefail
has() {{ command -v "$1" >/dev/null 2>&1; }}
venv=$PWD/.venv device=cpu mpi=0 nccl=0 cuda=/none version=3.11.9 {settings}
source launch/horovod/wheel.sh
build=$(build_name)
compilers=$(compilers)
{command}
"""
TOOLS = ("bash", "sed", "cksum", "cut", "cat", "uname", "head", "mkdir", "cp", "mv", "readlink")


@pytest.fixture
def shell(tmp_path):
    """Runs a command after wheel.sh, with only TOOLS and what `add_tool` adds in PATH."""
    shutil.copytree(REPOSITORY / "launch" / "horovod", tmp_path / "launch" / "horovod")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool))

    def shell(command, settings="", **environment):
        return subprocess.run(
            ["bash", "-c", SCRIPT.format(command=command, settings=settings)],
            cwd=tmp_path, capture_output=True, text=True, check=True,
            env={"PATH": str(programs), "HOME": str(tmp_path / "home"), **environment},
        ).stdout.strip()  # fmt: skip

    def add_tool(name, prints):
        (programs / name).write_text(f"#!{programs}/bash\necho {prints}\n")
        (programs / name).chmod(0o755)

    shell.add_tool = add_tool
    return shell


def add_compiler(shell, version):
    shell.add_tool("make", "make")
    shell.add_tool("g++", f"g++ {version}")


def keep(shell, folder):
    wheel = folder.parent / "horovod-0.whl"
    wheel.write_text("a wheel")
    shell(f'keep_wheel "{wheel}" "{folder}/$build.$compilers"')


def test_a_wheel_is_found_by_the_compilers_that_built_it_and_without_compilers_anyway(shell, tmp_path):
    cache = tmp_path / "home" / ".cache" / "resrep-dist" / "wheels"
    cache.mkdir(parents=True)
    assert shell("find_wheel") == ""
    add_compiler(shell, "12.2")
    keep(shell, cache)
    found = shell("find_wheel")
    assert found.startswith(f"{cache}/horovod-") and found.endswith("/horovod-0.whl")
    add_compiler(shell, "14.2")
    assert shell("find_wheel") == ""
    (tmp_path / "bin" / "g++").unlink()
    assert shell("find_wheel") == found
    # It is for one Python, TensorFlow, controller and device.
    assert not any(shell("find_wheel", setting) for setting in ("version=3.12.1", "mpi=1", "nccl=1", "device=gpu"))


def test_a_named_folder_comes_first_and_its_wheels_fit_whatever_built_them(shell, tmp_path):
    add_compiler(shell, "12.2")
    named, cache = tmp_path / "named folder", tmp_path / "cache" / "resrep-dist" / "wheels"
    cache.mkdir(parents=True)
    for folder in (named, cache):
        keep(shell, folder)
    places = {"RESREP_WHEELS": str(named), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert shell("find_wheel", **places).startswith(f"{named}/")
    add_compiler(shell, "14.2")
    assert shell("find_wheel", **places).startswith(f"{named}/")
    places.pop("RESREP_WHEELS")
    assert shell("find_wheel", **places) == ""


@pytest.mark.parametrize("file", ["cmake.sh", "include/tensorflow/compiler/xla/client/xla_builder.h"])
def test_a_change_of_what_is_compiled_is_another_build(shell, tmp_path, file):
    before = shell('echo "$build"')
    assert before.startswith("horovod-0.28.1-tensorflow-cpu-2.") and "-python3.11-" in before
    with (tmp_path / "launch" / "horovod" / file).open("a") as stream:
        stream.write("\n")
    assert shell('echo "$build"') != before


def test_settings_of_the_build_are_part_of_the_compilers(shell):
    add_compiler(shell, "12.2")
    one = shell('echo "$compilers"')
    assert one and shell('echo "$compilers"') == one
    assert shell('echo "$compilers"', HOROVOD_BUILD_CUDA_CC_LIST="90") != one
    assert shell('echo "$compilers"', "mpi=1") == ""  # mpicxx is missing
    shell.add_tool("mpicxx", "g++ -lmpi")
    assert shell('echo "$compilers"', "mpi=1") not in ("", one)


def test_cmake_removes_the_const_that_gcc_14_refuses(tmp_path):
    header = tmp_path / "source" / "third_party" / "flatbuffers" / "include" / "flatbuffers" / "stl_emulation.h"
    header.parent.mkdir(parents=True)
    header.write_text("  pointer const data_;\n  const size_type count_;\n")
    (tmp_path / "cmake").write_text('#!/bin/bash\nprintf "%s|" "$@"\n')
    (tmp_path / "cmake").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = REPOSITORY / "launch" / "horovod" / "cmake.sh"
    for arguments in ([str(tmp_path / "source"), "-DA=b c"], ["--build", "."]):
        run = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout == "|".join(arguments) + "|"
        assert header.read_text() == "  pointer const data_;\n  size_type count_;\n"


@pytest.fixture
def set_up(shell, tmp_path):
    """Runs the set-up with the tools of `shell` and those that it needs itself, but no Python and no compiler."""
    shutil.copy(REPOSITORY / "launch" / "setup.sh", tmp_path / "launch")
    for tool in ("dirname", "realpath", "df", "awk", "mktemp", "rm", "flock", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def set_up(**settings):
        return subprocess.run(
            ["bash", "launch/setup.sh"], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home"), "RESREP_DEVICE": "cpu", **settings},
        )  # fmt: skip

    return set_up


def test_uv_brings_a_python_where_none_fits(set_up, shell, tmp_path):
    run = set_up()
    assert run.returncode == 2 and "no suitable Python. Wanted" in run.stderr and "command not found" not in run.stderr
    calls = tmp_path / "calls"
    shell.add_tool("uv", f'"$*" >>{calls}; if [[ $2 == find ]]; then echo {sys.executable}; fi')
    run = set_up()
    # The next thing that is missing.
    assert run.returncode == 2 and "g++ is missing" in run.stderr
    assert "uv installs Python 3.12" in run.stdout
    assert calls.read_text().split("\n")[:2] == ["python install 3.12", "python find --managed-python 3.12"]


def test_nccl_is_refused_on_cpus_and_without_nvcc(set_up, shell, tmp_path):
    add_compiler(shell, 12)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    run = set_up(RESREP_NCCL="1")
    assert run.returncode == 2 and "RESREP_DEVICE=gpu RESREP_NCCL=1" in run.stderr
    run = set_up(RESREP_NCCL="1", RESREP_DEVICE="gpu", CUDA_HOME="/nowhere")
    assert run.returncode == 2 and "there is no /nowhere/bin/nvcc" in run.stderr and "CUDA_HOME=" in run.stderr


# Stands in for a Python: makes an environment with itself and a uv, and knows no other module.
PYTHON = """#!{bin}/bash
case "$*" in
    *version_info*) echo 3.11.9 ;;
    *" venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *" uv=="*)
        printf '#!{bin}/bash\\necho "$*" >>{calls}; cp "$0" .venv/bin/resrep\\n' >.venv/bin/uv
        chmod +x .venv/bin/uv ;;
    *" config "*) exit 1 ;;
esac
"""


@pytest.fixture
def set_up_to_the_end(set_up, shell, tmp_path):
    """Runs the set-up with wheels for everything; returns what it did, without a time."""
    for tool in ("chmod", "touch", "basename"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    shell.add_tool("python3.11", "")
    (tmp_path / "bin" / "python3.11").write_text(PYTHON.format(bin=tmp_path / "bin", calls=tmp_path / "calls"))
    for features in ("device=cpu", "device=cpu mpi=1", "device=gpu", "device=gpu nccl=1"):
        shell('mkdir -p "wheels/$build.1" && echo a wheel >"wheels/$build.1/horovod-0.whl"', features)

    def set_up_to_the_end(**settings):
        (tmp_path / "calls").unlink(missing_ok=True)
        run = set_up(RESREP_WHEELS="wheels", **settings)
        assert run.returncode == 0, run.stdout + run.stderr
        assert ("ready" in run.stdout) == (tmp_path / "calls").exists()
        return run.stdout.partition("Horovod with ")[2].strip(")\n") or run.stdout

    return set_up_to_the_end


@pytest.mark.parametrize(
    "tool, variable, device, name", [("mpicxx", "RESREP_MPI", "cpu", "MPI"), ("nvcc", "RESREP_NCCL", "gpu", "NCCL")]
)
def test_a_shell_that_sees_more_or_less_than_the_first_one_builds_nothing(
    set_up_to_the_end, shell, tmp_path, tool, variable, device, name
):
    there, asked = {"RESREP_DEVICE": device, "CUDA_HOME": "/nowhere"}, {variable: "1"}
    assert set_up_to_the_end(**there) == "Gloo"
    shell.add_tool(tool, tool)
    assert set_up_to_the_end(**there) == ""
    assert set_up_to_the_end(**there, **asked) == f"Gloo, {name}"
    (tmp_path / "bin" / tool).unlink()
    assert set_up_to_the_end(**there) == ""
    # What the first one sees counts.
    shell.add_tool(tool, tool)
    shutil.rmtree(tmp_path / ".venv")
    assert set_up_to_the_end(**there) == f"Gloo, {name}"


def test_a_set_up_that_has_waited_for_another_one_takes_what_that_has_built(set_up_to_the_end, shell, tmp_path):
    venv, away = tmp_path / ".venv", tmp_path / "away"
    assert set_up_to_the_end() == "Gloo"
    venv.rename(away)
    shell.add_tool("mpicxx", "mpicxx")
    # The second call is the one that waits.
    flock = tmp_path / "bin" / "flock"
    flock.unlink()
    shell.add_tool("flock", f'>/dev/null; [[ $1 == -n ]] || touch waits; exec {shutil.which("flock")} "$@"')
    with (tmp_path / "launch" / "setup.sh").open() as file, ThreadPoolExecutor() as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = pool.submit(set_up_to_the_end)
        while not (tmp_path / "waits").exists():
            assert not waiting.done(), waiting.result()
            time.sleep(0.05)
        away.rename(venv)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert waiting.result() == "set-up: another one is at work here; waiting for it\n"


def test_an_image_reads_the_weights_that_configurations_name_and_lacks_only_what_developers_need(
    set_up_to_the_end, tmp_path, monkeypatch
):
    def extras(**settings):
        shutil.rmtree(tmp_path / ".venv", ignore_errors=True)
        set_up_to_the_end(**settings)
        return re.search(r"--editable \.\[cpu,(.*)\]", (tmp_path / "calls").read_text())[1].split(",")

    monkeypatch.syspath_prepend(str(REPOSITORY / "launch"))
    pinned = set(importlib.import_module("pins").EXTRAS)
    sys.modules.pop("pins")
    assert set(extras()) == pinned
    # Those of ImageNet are .safetensors files.
    assert "torch-weights" in pinned and set(extras(RESREP_SEAL="1")) == pinned - {"dev", "docs"}


@pytest.mark.parametrize("arguments", [["--wheel"], ["--whell", "folder"], ["--wheel", "folder", "more"]])
def test_other_arguments_are_refused(arguments):
    run = subprocess.run(
        ["bash", "launch/setup.sh", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2 and "expected nothing or --wheel DIR" in run.stderr
