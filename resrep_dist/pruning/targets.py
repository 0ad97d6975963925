"""Checks that a target can be reached, and finds the last step at which masks may change."""

import math

from resrep_dist.config import PruneConfig
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.graph import Graph
from resrep_dist.pruning.goals import Goal, goal_of
from resrep_dist.pruning.rules import last_step_to_die, rounded_widths

import numpy as np

# Fraction of the phase after which masks no longer change, if a row of norm 1 that is masked at the first update
# could not die in time. Rows of a smaller norm may still die in the rest of the phase.
_FALLBACK_STOP_FRACTION = 0.5


def require_prunable(model_name: str, graph: Graph) -> None:
    """Check that a model has something to prune.

    Args:
        model_name: Name of the model, for the message.
        graph: Trace of the model.

    Raises:
        ModelError: If there are no groups. The message has the first reasons.
    """
    if not graph.groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(graph.refused.items())[:3])
        raise ModelError(f"model {model_name}: no convolution can be pruned ({reasons or 'it has none'})")


def require_reachable_target(graph: Graph, config: PruneConfig) -> Goal:
    """Check that the target can be reached with the narrowest widths that the settings allow.

    Args:
        graph: Trace of the original model.
        config: The target, `min_channels` and `round_to`.

    Returns:
        The target.

    Raises:
        ConfigError: If these widths still cost more than the target, or it is no target for this model, see `goal_of`.
    """
    goal = goal_of(graph, config)
    lowest = goal.fraction_at(narrowest_widths(graph, config))
    if lowest > goal.fraction:
        scale = goal.base if goal.setting.endswith("_ms") else 1.0
        raise ConfigError(
            f"{goal.setting}: received {goal.fraction * scale:g}, expected more than {lowest * scale:.4g}: "
            f"so much of the {goal.cost.noun} remains with prune.min_channels {config.min_channels} and prune.round_to "
            f"{config.round_to} in all {len(graph.groups)} groups that can be pruned; raise it, or lower these"
        )
    return goal


def narrowest_widths(graph: Graph, config: PruneConfig) -> list[int]:
    """Return the smallest width of each group that the settings allow.

    Args:
        graph: Trace of the original model.
        config: `min_channels` and `round_to`.
    """
    cost = goal_of(graph, config).cost
    both = zip(graph.widths, graph.multiples(config.round_to), strict=True)
    rounded = [rounded_widths(cost, group, width, multiple) for group, (width, multiple) in enumerate(both)]
    return [int(up[min(config.min_channels, width)]) for up, width in zip(rounded, graph.widths, strict=True)]


def fewest_channels(graph: Graph, config: PruneConfig) -> int:
    """Return a lower bound for the number of channels that must be masked to reach the target.

    A channel saves most while all others are unmasked, because the cost of a layer is a product of widths. So each
    channel is counted with what it saves at full width, and the groups whose channels save most come first. What a real
    selection saves with the same number of channels is at most that. Of measured times that holds as nearly as they
    grow with the product of the widths.

    Args:
        graph: Trace of the original model.
        config: The target, `min_channels` and `round_to`.
    """
    widths, lowest, goal = graph.widths, narrowest_widths(graph, config), goal_of(graph, config)
    # At full width the cost of the merged model can be below the base's, whose batch norms take time.
    missing = goal.cost.total(widths) - goal.limit if goal.kind == "latency" else (1.0 - goal.fraction) * goal.base
    num_channels = 0
    savings = sorted(zip(goal.cost.slopes(widths), widths, lowest, strict=True), reverse=True)
    for saving, width, least in savings:
        if missing <= 0 or saving <= 0:
            break
        num_taken = min(width - least, math.ceil(missing / saving))
        num_channels, missing = num_channels + num_taken, missing - num_taken * saving
    return num_channels


def last_mask_step(config: PruneConfig, lasso_strength: float, first_step: int, rates: np.ndarray) -> int:
    """Return the last step at which masks may change, so that rows masked then still die before the phase ends.

    Without `mask_stop_fraction` it is the last step from which a row of norm 1 reaches zero (see `last_step_to_die`).
    If that is not after `first_step`, it is the middle of the phase.

    Args:
        config: The momentum, and `mask_stop_fraction`, which has priority if it is not None.
        lasso_strength: Strength of the penalty.
        first_step: No mask changes before this step.
        rates: Learning rate of every step of the phase, [N].

    Raises:
        ConfigError: If the last step would be before `first_step`.
    """
    in_time = last_step_to_die(rates, lasso_strength=lasso_strength, momentum=config.compactor_momentum)
    if config.mask_stop_fraction is None and in_time > first_step:
        return in_time
    last_step = int(len(rates) * (config.mask_stop_fraction or _FALLBACK_STOP_FRACTION))
    if last_step < first_step:
        raise ConfigError(
            f"prune.mask_start_epochs: received {config.mask_start_epochs}, step {first_step}; masks must stop at "
            f"step {last_step} for the last rows to die, so none would ever be chosen; start them earlier"
        )
    return last_step
