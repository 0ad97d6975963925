"""What `model.fit` must be like for the callbacks in `keras_callbacks.py`."""

from collections.abc import Mapping
from typing import Any

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import UserError
from resrep_dist.pruning.optimizer import ResRepOptimizer

import numpy as np
from tensorflow import keras


def optimizer_of(model: keras.Model) -> ResRepOptimizer:
    """Return the optimizer of a model that was compiled as the callbacks need it.

    Args:
        model: The compiled model.

    Raises:
        UserError: If it was not.
    """
    optimizer, num_steps = model.optimizer, getattr(model, "_steps_per_execution", None)
    if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        raise UserError(
            "the policy mixed_float16: `fit` does not support it, expected float32 or mixed_bfloat16; the Trainer "
            "does, with training.precision: mixed_float16"
        )
    if not isinstance(optimizer, ResRepOptimizer):
        raise UserError(
            f"the optimizer: received a {type(optimizer).__name__}, expected a ResRepOptimizer; "
            "compile the model with optimizer=resrep_dist.ResRepOptimizer(...)"
        )
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise UserError(
            f"the model: it was made under a {type(model.distribute_strategy).__name__} of "
            f"{model.distribute_strategy.num_replicas_in_sync} devices, expected none; start one process for each "
            "device, with horovodrun"
        )
    # Keras begins with 1 where it is to choose the number.
    received = "auto" if getattr(model, "autotune_steps_per_execution", False) else int(num_steps or 1)
    if received != 1:
        # Keras calls the callbacks once for all of them, so masks and checkpoints would be left out.
        raise UserError(
            f"steps_per_execution: received {received}, expected 1, since masks are chosen between steps; leave it out "
            "of model.compile"
        )
    return optimizer


def require_equal_steps(params: Mapping[str, Any], cluster: Cluster) -> None:
    """Check that all ranks make the same number of steps. Otherwise one would wait for ever for another. A collective.

    Args:
        params: What Keras gives to a callback: `steps` of an epoch, and `epochs`.
        cluster: The ranks.

    Raises:
        UserError: On every rank, if they do not.
    """
    # Of a generator without an end Keras knows no number of steps.
    found = cluster.gather(np.array([params.get("steps") or 0, params.get("epochs") or 0]))
    if (found != found[0]).any():
        received = ", ".join(f"rank {rank}: {epochs} epochs of {steps}" for rank, (steps, epochs) in enumerate(found))
        raise UserError(
            f"fit: received different numbers of steps ({received}), expected the same on all ranks; give parts of "
            "equal size, or the same `steps_per_epoch` and `epochs` on each"
        )
