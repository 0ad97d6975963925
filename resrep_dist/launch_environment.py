"""What a launcher says about this process in its environment, known before TensorFlow is imported."""

import os

_RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_SIZE = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCAL_SIZE = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def launched_rank() -> int:
    """This process' rank, 0 for a single process."""
    return _first(_RANK + (("SLURM_PROCID",) if _is_srun_step() else ()), 0)


def launched_size() -> int:
    """How many processes the launcher started, 1 without one."""
    return _first(_SIZE + (("SLURM_STEP_NUM_TASKS",) if _is_srun_step() else ()), 1)


def launched_local_size() -> int:
    """How many of them run on this host."""
    return _first(_LOCAL_SIZE, 1)


def _is_srun_step() -> bool:
    # In a batch script itself SLURM_PROCID is set as well, but no step was launched.
    return "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_STEP_ID", "").isdigit()


def _first(names: tuple[str, ...], default: int) -> int:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return default
