"""The GPU and the threads of a rank."""

import contextlib
import os
import platform

from resrep_dist.distributed.environment import (
    available_cores,
    has_bound_gpus,
    has_slurm_gpus,
    launched_size,
    visible_cores,
)
from resrep_dist.errors import HostError, UserError

import tensorflow as tf


def own_gpu(num_gpus: int, local_rank: int, local_size: int) -> int:
    """Return the index of this rank's GPU among those that it sees.

    Args:
        num_gpus: Number of GPUs that it sees.
        local_rank: Number of this rank on its host.
        local_size: Number of ranks on the host.

    Raises:
        HostError: If there are more ranks than GPUs.
    """
    if local_size <= num_gpus:
        return local_rank
    if has_bound_gpus():
        return 0
    if os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1":
        # For tests: ranks that share GPUs, which NCCL refuses otherwise.
        return local_rank % num_gpus
    raise HostError(
        f"host {platform.node()}: {local_size} ranks but {num_gpus} GPUs; start at most {num_gpus} ranks per host "
        "(with Slurm: --gpus-per-node=N --ntasks-per-node=N, which shows each rank the GPUs of all)",
        local_rank,
    )


def limit_threads_and_pin_gpu(local_rank: int, local_size: int) -> None:
    """Give this rank its part of the host's cores and its GPU. Called before TensorFlow's first operation.

    Args:
        local_rank: Number of this rank on its host.
        local_size: Number of ranks on the host.

    Raises:
        HostError: If the GPUs of the host do not fit its ranks.
        UserError: If there are several ranks, and TensorFlow has already initialized the GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and has_slurm_gpus():
        raise HostError(
            f"host {platform.node()}: Slurm gave this job GPUs, but TensorFlow sees none; make an environment for "
            "them (`RESREP_DEVICE=gpu bash launch/setup.sh`, `resrep doctor` shows it), or leave them out of the job",
            local_rank,
        )
    if gpus:
        gpu = gpus[own_gpu(len(gpus), local_rank, local_size)]
        try:
            tf.config.set_visible_devices(gpu, "GPU")
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            if launched_size() == 1:
                # The model of a user's own program was made on it before, which is as good where no rank is beside it.
                return
            raise UserError(
                "TensorFlow had started its GPUs before this rank could choose its own; make "
                "`resrep_dist.Cluster()` before the model and give it to the Trainer"
            ) from None
    # TensorFlow raises an error if it is already initialized, as it may be in a user's own program.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(available_cores())
        if visible_cores() == 1:
            # A single thread takes the newest operation first. It follows the backward pass to the first layer before
            # it computes any gradient of a weight. A second one takes the oldest, so they come during the pass. And a
            # single one that runs Python code which waits for an operation, as for a SavedModel, waits for itself.
            tf.config.threading.set_inter_op_parallelism_threads(2)
