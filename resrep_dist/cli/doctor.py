"""Checks what is installed and what is missing, and prints the commands that fix it.

The wanted versions are this package's requirements, the found ones are the packages' metadata. Only the last checks
import TensorFlow, which takes seconds.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from resrep_dist.cli.requirements import installed_version, is_series, lowest_series, required_versions, requirements
from resrep_dist.distributed.environment import visible_cores

from rich.console import Console
from rich.table import Table

_TENSORFLOW_WHEELS = ("tensorflow", "tensorflow-cpu")


@dataclass(frozen=True)
class Finding:
    """The result of a check, one row of the table."""

    name: str
    """What was checked."""
    found: str
    """What was found, such as a version."""
    problem: str = ""
    """What is wrong; empty if nothing is."""
    fix: tuple[str, ...] = ()
    """Commands that fix the problem."""


def run_doctor(console: Console) -> int:
    """Check the installation, and print the results and the commands that fix the problems.

    Args:
        console: Where they are printed.

    Returns:
        0 if there is no problem, otherwise 1.
    """
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += check()
        except Exception as error:  # a broken installation may raise anything; the other checks go on
            name = check.__name__.removeprefix("_").replace("_", " ")
            findings.append(Finding(name, "?", f"the check failed: {type(error).__name__}: {_first_line(error)}"))
    _print_table(console, findings)
    problems = [finding for finding in findings if finding.problem]
    if not problems:
        console.print("Nothing is missing.")
        return 0
    _print_problems(console, problems)
    return 1


def _print_table(console: Console, findings: list[Finding]) -> None:
    table = Table("", "found", "")
    for finding in findings:
        state = "[red]problem, see below[/]" if finding.problem else "[green]fine[/]"
        table.add_row(finding.name, finding.found.replace("[", r"\["), state)
    console.print(table)


def _print_problems(console: Console, problems: list[Finding]) -> None:
    def line(text: str) -> None:  # for copying: not wrapped, no colors
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for problem in problems:
        line(f"\n{problem.name}: {problem.problem}")
        for command in problem.fix:
            line(f"    {command}")
    if (Path(__file__).parents[2] / "launch/setup.sh").exists():
        line("\nOr let `bash launch/setup.sh` make an environment with everything, in .venv of the repository.")


def _python() -> Iterator[Finding]:
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        yield Finding("Python", found)
    else:
        wanted = required_versions("tensorflow-cpu")
        fix = (f"python3.12 -m venv .venv   # or 3.10, 3.11, 3.13; there is no TensorFlow{wanted} for others",)
        yield Finding("Python", found, "it must be 3.10, 3.11, 3.12 or 3.13", fix)


def _tensorflow() -> Iterator[Finding]:
    wheels = {name: version for name in _TENSORFLOW_WHEELS if (version := installed_version(name))}
    found = ", ".join(f"{name} {version}" for name, version in wheels.items()) or "no"
    required = required_versions("tensorflow-cpu")
    fix: tuple[str, ...] = (_pip(f"{'tensorflow[and-cuda]' if _nvidia_gpus() else 'tensorflow-cpu'}{required}"),)
    if not wheels:
        yield Finding("TensorFlow", found, "it is missing", fix)
    elif any(not is_series(version, required) for version in wheels.values()):
        reason = f"it must be {lowest_series(required)}, which tf-keras{required_versions('tf-keras')} is for"
        fix = (
            _pip_uninstall(*wheels),
            *fix,
            "resrep doctor   # Horovod, if it is here, must be built again",
        )
        yield Finding("TensorFlow", found, reason, fix)
    elif len(wheels) > 1 and len(set(wheels.values())) > 1:
        yield Finding("TensorFlow", found, "two versions overwrote each other", (_pip_uninstall(*wheels), *fix))
    elif "tensorflow" not in wheels and _nvidia_gpus():
        fix = (_pip_uninstall(*wheels), *fix)
        yield Finding("TensorFlow", found, "this machine has a GPU, which tensorflow-cpu does not use", fix)
    else:
        yield Finding("TensorFlow", found)


def _keras() -> Iterator[Finding]:
    tf_keras = installed_version("tf-keras")
    required = required_versions("tf-keras")
    problem = "" if is_series(tf_keras, required) else f"it must be {lowest_series(required)}, as TensorFlow"
    # With its requirements it would bring the large `tensorflow` beside a `tensorflow-cpu`.
    fix = (_pip("--no-deps", f"tf-keras{required}"),) if problem else ()
    yield Finding("tf-keras (Keras 2)", tf_keras or "no", problem, fix)
    keras = installed_version("keras")
    missing = "" if keras or not _tensorflow_folder() else "TensorFlow does not start without it"
    yield Finding("Keras 3 (not used)", keras or "no", missing, (_pip("keras>=3.5"),) if missing else ())


def _numpy() -> Iterator[Finding]:
    version = installed_version("numpy")
    required = required_versions("numpy")
    problem = "" if is_series(version, required) else f"it must be {lowest_series(required)}, the tested one"
    yield Finding("numpy", version or "no", problem, (_pip(f"numpy{required}"),) if problem else ())


def _kerassurgeon() -> Iterator[Finding]:
    version, helper = installed_version("kerassurgeon"), installed_version("importlib-metadata")
    required = required_versions("kerassurgeon")
    problem = ""
    if f"=={version}" != required:
        problem = f"it must be {required.removeprefix('==')}; without it nothing can be merged"
    elif not helper or int(helper.split(".")[0]) >= 8 or not installed_version("zipp"):
        problem = f"it needs importlib-metadata below 8 (found: {helper or 'none'}) and zipp"
    # It declares requirements of 2020, Keras below 3 among them, that it does not need.
    fix = (_pip("--no-deps", f"kerassurgeon{required}", "importlib-metadata<8", "zipp"),)
    yield Finding("kerassurgeon", version or "no", problem, fix if problem else ())


def _compiler() -> Iterator[Finding]:
    tools = {tool: shutil.which(tool) for tool in ("g++", "make")}
    missing = [tool for tool, path in tools.items() if not path]
    needed = missing and not installed_version("horovod")
    problem = f"{' and '.join(missing)} missing; Horovod is compiled" if needed else ""
    found = ", ".join(filter(None, tools.values())) or "no (only for building Horovod)"
    yield Finding("compiler", found, problem, ("apt-get install g++ make   # Debian, Ubuntu",) if problem else ())


def _launchers() -> Iterator[Finding]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = [name for name in ("horovodrun", "mpirun", "srun") if shutil.which(name, path=path)]
    yield Finding("launchers", ", ".join(found) or "no")


def _cores() -> Iterator[Finding]:
    yield Finding("processor cores", str(visible_cores()))


def _horovod() -> Iterator[Finding]:
    version = installed_version("horovod")
    if version is None:
        yield Finding("Horovod", "no", "it is missing; only one process can train", _build_horovod())
        return
    if not _tensorflow_folder():
        yield Finding("Horovod", version, "it cannot start without TensorFlow; fix that first")
        return
    try:
        import horovod.tensorflow as horovod
    except Exception as error:
        problem = f"it does not start ({_first_line(error)}); often it was built against another TensorFlow"
        yield Finding("Horovod", version, problem, _build_horovod())
        return
    built = {"Gloo": horovod.gloo_built(), "MPI": horovod.mpi_built(), "NCCL": horovod.nccl_built()}
    found = f"{version} with {', '.join(name for name, there in built.items() if there) or 'no controller'}"
    if f"=={version}" != (required := required_versions("horovod")):
        yield Finding("Horovod", found, f"it must be {required.removeprefix('==')}", _build_horovod())
    elif not built["Gloo"]:
        yield Finding("Horovod", found, "it was built without Gloo", _build_horovod())
    else:
        yield Finding("Horovod", found)


def _gpus() -> Iterator[Finding]:
    present, folder = _nvidia_gpus(), _tensorflow_folder()
    if not folder:
        yield Finding("GPUs", f"{present} (nvidia-smi); TensorFlow is missing")
        return
    import tensorflow as tf

    seen = len(tf.config.list_physical_devices("GPU"))
    if seen < present and installed_version("tensorflow"):
        problem = (
            f"nvidia-smi shows {present}, TensorFlow sees {seen}: "
            "its libraries are missing, or CUDA_VISIBLE_DEVICES hides some"
        )
        yield Finding("GPUs", str(seen), problem, (_pip(f"tensorflow[and-cuda]{required_versions('tensorflow')}"),))
    else:
        yield Finding("GPUs", f"{seen} seen by TensorFlow")


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python, _tensorflow, _keras, _numpy, _kerassurgeon, _compiler, _launchers, _cores, _horovod, _gpus,
)  # fmt: skip


def _build_horovod() -> tuple[str, ...]:
    """Return the commands that build Horovod for the installed TensorFlow."""
    folder = _tensorflow_folder()
    if not folder:
        return ("resrep doctor   # again, when TensorFlow is there: Horovod is compiled against it",)
    recipe = Path(__file__).parents[2] / "launch/horovod"
    if not recipe.exists():
        return ("bash launch/setup.sh --wheel DIR   # in a clone of the repository; then install the wheel in DIR",)
    include = f"{folder}/include/external"
    variables = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        # TensorFlow's own headers include these two by short names since 2.16.
        "CPLUS_INCLUDE_PATH": f"{include}/highwayhash:{include}/farmhash_archive/src:{recipe}/include",
        "CXXFLAGS": "-include stdexcept -include cstdint",
        "HOROVOD_CMAKE": f"{recipe}/cmake.sh",
        "HOROVOD_WITH_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_PYTORCH": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_MPI" if shutil.which("mpicxx") else "HOROVOD_WITHOUT_MPI": "1",
    }
    if _nvidia_gpus() and shutil.which("nvcc"):
        variables["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    settings = " ".join(f'{name}="{value}"' for name, value in variables.items())
    cached = "--no-cache-dir" if _has_pip() else "--no-cache"  # a cached wheel may be of another build
    build = _pip(
        cached, "--no-build-isolation", "--no-deps", "--force-reinstall", f"horovod{required_versions('horovod')}"
    )
    return (_pip(*requirements("horovod-build")), f"{settings} {build}")


def _pip(*arguments: str) -> str:
    """Return the shell command that installs packages into this environment, which may have no pip."""
    python = shlex.quote(sys.executable)
    installer = f"{python} -m pip install" if _has_pip() else f"uv pip install --python {python}"
    return f"{installer} {' '.join(map(shlex.quote, arguments))}"


def _pip_uninstall(*names: str) -> str:
    python = shlex.quote(sys.executable)
    if _has_pip():
        return f"{python} -m pip uninstall --yes {' '.join(names)}"
    return f"uv pip uninstall --python {python} {' '.join(names)}"


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _tensorflow_folder() -> Path | None:
    """Return the folder of TensorFlow without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("tensorflow")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _nvidia_gpus() -> int:
    """Return the number of GPUs that the driver shows."""
    if not shutil.which("nvidia-smi"):
        return 0
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in output.splitlines())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
