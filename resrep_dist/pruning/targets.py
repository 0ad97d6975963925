"""What a target needs: channels that can be pruned, widths that reach it, time to die."""

import logging
import math

from resrep_dist.config import PruneConfig
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.graph import Graph
from resrep_dist.pruning.rules import last_step_to_die

import numpy as np
from tensorflow import keras

_log = logging.getLogger(__name__)


def require_prunable(model: keras.Model, graph: Graph) -> None:
    """Raise a ModelError, with the first reasons, where nothing can be pruned."""
    if not graph.groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(graph.refused.items())[:3])
        raise ModelError(f"model {model.name}: no convolution can be pruned ({reasons or 'it has none'})")


def require_reachable_target(graph: Graph, config: PruneConfig) -> None:
    """Raise a ConfigError where the narrowest widths that the settings allow still miss the target."""
    fraction = graph.macs.total(narrowest_widths(graph, config)) / graph.macs.total(graph.widths)
    if fraction > config.target_macs_fraction:
        raise ConfigError(
            f"prune.target_macs_fraction: received {config.target_macs_fraction:g}, expected more than {fraction:.4g}: "
            f"so much of the multiply-adds remains with prune.min_channels {config.min_channels} and prune.round_to "
            f"{config.round_to} in all {len(graph.groups)} groups that can be pruned"
        )


def narrowest_widths(graph: Graph, config: PruneConfig) -> list[int]:
    """The fewest channels of each group that the settings allow."""
    least = math.ceil(config.min_channels / config.round_to) * config.round_to
    return [min(least, width) for width in graph.widths]


def last_mask_step(config: PruneConfig, first_step: int, rates: np.ndarray) -> int:
    """The last step at which masks may change, so that the rows that are masked there still die in time.

    Args:
        rates: the learning rate of every step of the phase.

    Raises:
        ConfigError: where that is before `first_step`.
    """
    in_time = last_step_to_die(rates, lasso_strength=config.lasso_strength, momentum=config.compactor_momentum)
    if config.mask_stop_fraction is None and in_time > first_step:
        return in_time
    last_step = int(len(rates) * (config.mask_stop_fraction or 0.5))
    if last_step < first_step:
        raise ConfigError(
            f"prune.mask_start_epochs: received {config.mask_start_epochs:g}, step {first_step}; masks must stop at "
            f"step {last_step} for the last rows to die, so none would ever be chosen; start them earlier"
        )
    if last_step > in_time:
        _log.warning(
            "The penalty is too weak for the length of the phase: a row of norm 1 that is masked at step %d, where "
            "masks last change, may be alive at the end, step %d. Raise prune.lasso_strength or train.learning_rate, "
            "or lower prune.mask_stop_fraction.",
            last_step,
            len(rates),
        )
    return last_step
