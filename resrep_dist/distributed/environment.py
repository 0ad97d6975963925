"""What the launcher tells this process, without importing TensorFlow; and how the process ends on an error."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from resrep_dist.errors import UserError
from resrep_dist.timing.machine import visible_cores as visible_cores

_RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_SIZE = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCAL_SIZE = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_LOCAL_RANK = ("HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_BOUND_BY_OPEN_MPI = "OMPI_MCA_orte_bound_at_launch"
_LAUNCHERS = ("horovodrun", "mpirun", "mpiexec", "orterun", "prterun")
_before_leaving: list[Callable[[], None]] = []
_leaving = threading.Lock()


def launched_rank() -> int:
    """Return the rank of this process; 0 for a single process."""
    return _first(_RANK + (("SLURM_PROCID",) if _is_srun_step() else ()), 0)


def launched_size() -> int:
    """Return the number of processes that the launcher started; 1 without a launcher."""
    return _first(_SIZE + (("SLURM_STEP_NUM_TASKS",) if _is_srun_step() else ()), 1)


def launched_local_rank() -> int:
    """Return the number of this process among those on its host, from 0; 0 for a single process."""
    return _first(_LOCAL_RANK + (("SLURM_LOCALID",) if _is_srun_step() else ()), 0)


def launched_local_size() -> int:
    """Return the number of processes that the launcher started on this host."""
    return _first(_LOCAL_SIZE, _srun_tasks_on_this_node() if _is_srun_step() else 1)


def launcher_terminal() -> str | None:
    """Return the terminal on which the launcher of this process prints; None if there is none on this host.

    Launchers read their ranks' output through pipes, and print it with the rank in front of each line.
    """
    if launched_size() == 1:
        return None
    # Not at the top: `resrep doctor` imports this file where packages are missing.
    import psutil

    try:
        parents = psutil.Process().parents()
    except psutil.Error:
        return None  # a system that hides them
    for parent in parents:
        try:
            if any(Path(part).name in _LAUNCHERS for part in parent.cmdline()[:2]):
                terminal = os.readlink(f"/proc/{parent.pid}/fd/1")
                return terminal if terminal.startswith(("/dev/pts/", "/dev/tty")) else None
        except (OSError, psutil.Error):
            continue  # of another user, or gone
    return None


def available_cores() -> int:
    """Return the number of processor cores that this rank can use without disturbing the others.

    Ranks that are not bound to cores share those of the host equally.
    """
    cores = visible_cores()
    if os.environ.get(_BOUND_BY_OPEN_MPI) == "1":
        return cores
    if _is_srun_step() and os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return min(cores, int(os.environ["SLURM_CPUS_PER_TASK"]))
    num_all = os.cpu_count() or 1
    if cores < num_all and cores * launched_local_size() <= num_all:
        # This rank is bound to a part of the host, which is small enough that each rank can have its own part.
        return cores
    return max(1, cores // launched_local_size())


def has_slurm_gpus() -> bool:
    """Return True if Slurm gave this process GPUs, and no setting hides them."""
    is_given = any(os.environ.get(name) for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"))
    return is_given and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def has_bound_gpus() -> bool:
    """Return True if Slurm makes only its own GPUs visible to each rank."""
    binding = os.environ.get("SLURM_GPU_BIND", "").removeprefix("verbose,")
    if not _is_srun_step() or binding == "none":
        return False
    is_for_each = "SLURM_GPUS_PER_TASK" in os.environ or "gpu" in os.environ.get("SLURM_TRES_PER_TASK", "")
    return is_for_each or binding.startswith(("single:", "per_task:", "map_gpu:", "mask_gpu:"))


def launcher_name() -> str:
    """Return the name of the launcher, as far as the environment shows it."""
    if "HOROVOD_SIZE" in os.environ:
        return "horovodrun"
    return "srun" if _is_srun_step() else "mpirun"


def require_one_cluster(num_ranks: int) -> None:
    """Check that Horovod sees all processes. Otherwise each would train alone and write the same files.

    Args:
        num_ranks: Number of ranks that Horovod sees.

    Raises:
        UserError: If the launcher started another number.
    """
    if num_ranks == launched_size():
        return
    launcher = launcher_name()
    fix = {
        "srun": "start them with `srun --mpi=pmix`, and a Horovod built with MPI",
        "mpirun": "Horovod must be built with MPI, that of this mpirun",
    }.get(launcher, "start them with `horovodrun --gloo`")
    raise UserError(
        f"{launcher} started {launched_size()} processes, but Horovod sees {num_ranks}, so each would train alone; "
        f"{fix} (`resrep doctor` shows what it was built with; with Open MPI's headers here, "
        "`RESREP_MPI=1 bash launch/setup.sh` builds it with MPI)"
    )


def is_launched() -> bool:
    """Return True if a launcher started this process, or a script that reads its exit code."""
    return launched_size() > 1 or "RESREP_EXIT_CODES" in os.environ


def namespace_id(kind: str) -> str | None:
    """Return an identifier that differs between hosts, restarts of a host, and containers on one host.

    Args:
        kind: Kind of Linux namespace: `pid`, in which process numbers are valid, or `net`, in which loopback addresses
            are.

    Returns:
        The identifier; None if the system does not provide it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(f'/proc/self/ns/{kind}')}"
    except OSError:
        return None


def before_leaving(function: Callable[[], None]) -> None:
    """Register a function that `leave` calls before it ends the process.

    Args:
        function: A function without arguments.
    """
    _before_leaving.append(function)


def leave(code: int, message: str = "") -> NoReturn:
    """End this process at once, from any thread, with one line that says why.

    Horovod is not shut down, since that would wait for ranks that may no longer exist. `horovodrun` replaces every exit
    code by 1. So a script that needs the code sets RESREP_EXIT_CODES to the path of a file, to which each rank adds a
    line.

    Args:
        code: Exit code.
        message: The reason; empty to print nothing.
    """
    # Never released: only the first thread that calls this prints its reason.
    _leaving.acquire()
    if message:
        print(f"resrep: error: {message}", file=sys.stderr, flush=True)
    for function in _before_leaving:
        function()
    if "RESREP_EXIT_CODES" in os.environ:
        with contextlib.suppress(OSError), open(os.environ["RESREP_EXIT_CODES"], "a", encoding="ascii") as file:
            file.write(f"{code}\n")
    os._exit(code)


def _is_srun_step() -> bool:
    # In a batch script itself SLURM_PROCID is set as well, but no step was launched; and what mpirun starts on other
    # nodes it starts by a step of its own.
    is_of_mpirun = "OMPI_COMM_WORLD_SIZE" in os.environ
    return not is_of_mpirun and "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_STEP_ID", "").isdigit()


def _srun_tasks_on_this_node() -> int:
    """From `SLURM_STEP_TASKS_PER_NODE`: "8(x3),4" are three nodes with 8 tasks and one with 4."""
    counts: list[int] = []
    for count, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        counts += [int(count)] * int(repeats or 1)
    node = int(os.environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else 1


def _first(names: tuple[str, ...], default: int) -> int:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return default
