"""When masks change and how strong the penalty is: settings given as `auto` become numbers."""

import dataclasses
import math

from resrep_dist.config import PruneConfig
from resrep_dist.graph import Graph
from resrep_dist.pruning.goals import with_checksum
from resrep_dist.pruning.rules import last_step_to_die, steps_to_die, strength_to_die
from resrep_dist.pruning.schedule import PAPER_LASSO_STRENGTH, MaskSchedule, num_mask_updates, rounded_up
from resrep_dist.pruning.targets import fewest_channels, last_mask_step, narrowest_widths

import numpy as np

_MAX_START_EPOCHS = 5.0
_START_FRACTION = 0.05
# Part of the time after the first step in which masks are chosen: the rest is for the rows to die, and for the model to
# recover from that.
_MASK_FRACTION = 0.27
# With a penalty of their own, part of the phase in which masked rows die. The sooner, the longer the model recovers.
_DEATH_FRACTION = 0.1
_NUM_UPDATES = 25
_MAX_INTERVAL_STEPS = 200
# Of the steps over which the momentum averages: where the search for a phase in which no row hurries ends.
_MAX_UNHURRIED = 1000
_AUTOMATIC = ("lasso_strength", "mask_start_epochs", "mask_interval_steps", "channels_per_update")


def plan_masks(
    config: PruneConfig, graph: Graph, rates: np.ndarray, steps_per_epoch: float, warmup_epochs: float = 0.0
) -> MaskSchedule:
    """Make the schedule of a pruning phase, with a number in place of each `auto`.

    Masks begin after a twentieth of the phase. They are complete after about a third of it, where the penalty is just
    strong enough for the last rows to die by the end. Numbers that the user gave are kept, and the others fit them.

    Args:
        config: The section `prune`.
        graph: Trace of the original model.
        rates: Learning rate of every step of the phase, [N].
        steps_per_epoch: Number of steps per epoch.
        warmup_epochs: Length of the warmup of the learning rate.

    Raises:
        ConfigError: If the settings leave no step at which masks may change.
    """
    num_steps, momentum = len(rates), config.compactor_momentum
    start_epochs = _start_epochs(config, num_steps / steps_per_epoch, warmup_epochs)
    first_step = max(1, round(start_epochs * steps_per_epoch))
    window_end = _window_end(config, first_step, num_steps)
    strength = _strength(config, rates, window_end)
    numbers = dataclasses.replace(with_checksum(config), lasso_strength=strength, mask_start_epochs=start_epochs)
    last_step = last_mask_step(numbers, strength, first_step, rates)
    interval_steps, max_channels = update_rate(config, graph, first_step, min(last_step, window_end))
    numbers = dataclasses.replace(numbers, mask_interval_steps=interval_steps, channels_per_update=max_channels)
    num_needed = math.ceil(fewest_channels(graph, config) / max_channels)
    # Updates happen at multiples of the interval.
    complete = (math.ceil(first_step / interval_steps) + max(0, num_needed - 1)) * interval_steps
    if config.mask_stop_fraction is not None:
        complete = max(complete, last_step)
    options = {"lasso_strength": strength, "momentum": momentum}
    last_masked = max(window_end, complete)
    last_death_steps = steps_to_die(rates, last_masked, **options)
    return MaskSchedule(
        config=numbers,
        chosen=tuple(name for name in _AUTOMATIC if getattr(config, name) == "auto"),
        lasso_strength=strength,
        first_step=first_step,
        last_step=last_step,
        interval_steps=interval_steps,
        num_steps=num_steps,
        num_needed_updates=num_needed,
        pruned_step=last_masked + last_death_steps if last_death_steps else num_steps,
        death_steps=steps_to_die(rates, first_step, **options),
        needed_strength=strength_to_die(rates, complete, momentum=momentum),
        is_in_time=last_step <= last_step_to_die(rates, **options),
        steps_per_epoch=steps_per_epoch,
        unhurried_steps=_unhurried_steps(rates, first_step / num_steps, momentum),
    )


def _start_epochs(config: PruneConfig, num_epochs: float, warmup_epochs: float) -> float:
    if config.mask_start_epochs != "auto":
        return config.mask_start_epochs
    return float(f"{warmup_epochs + min(_MAX_START_EPOCHS, _START_FRACTION * num_epochs):.3g}")


def _window_end(config: PruneConfig, first_step: int, num_steps: int) -> int:
    """Return the step by which all masks are to be chosen."""
    if config.mask_stop_fraction is not None:
        return int(num_steps * config.mask_stop_fraction)
    return min(num_steps - 1, first_step + math.ceil(_MASK_FRACTION * max(0, num_steps - first_step)))


def _strength(config: PruneConfig, rates: np.ndarray, window_end: int) -> float:
    """Return the strength with which a row that is masked at the end of the window still dies in time."""
    if config.lasso_strength != "auto":
        return config.lasso_strength
    end = len(rates)
    # A penalty that does not pull at the rows that stay can be strong.
    if config.kept_lasso_strength is not None:
        end = min(end, window_end + max(1, math.ceil(_DEATH_FRACTION * end)))
    needed = strength_to_die(rates[:end], window_end, momentum=config.compactor_momentum)
    return max(PAPER_LASSO_STRENGTH, float(rounded_up(needed)) if needed else 0.0)


def _unhurried_steps(rates: np.ndarray, first_fraction: float, momentum: float) -> int | None:
    """Return the length of a phase, with the same curve of rates, in which a row dies in 1 / (1 - momentum) steps.

    None if the rates are so high that the weakest penalty takes it to zero in less, however long the phase is.
    """

    def death_steps(num_steps: int) -> int:
        stretched = np.interp(np.linspace(0, len(rates) - 1, num_steps), np.arange(len(rates)), rates)
        first_step = max(1, round(first_fraction * num_steps))
        end = min(num_steps - 1, first_step + math.ceil(_MASK_FRACTION * max(0, num_steps - first_step)))
        strength = strength_to_die(stretched, end, momentum=momentum)
        if strength is None:
            return 0
        strength = max(PAPER_LASSO_STRENGTH, strength)
        return steps_to_die(stretched, first_step, lasso_strength=strength, momentum=momentum) or num_steps

    memory_steps = round(1 / (1 - momentum))
    num_steps = memory_steps
    while death_steps(num_steps) < memory_steps:
        num_steps = math.ceil(1.05 * num_steps)
        if num_steps > _MAX_UNHURRIED * memory_steps:
            return None
    # A little more, since the times of the masks are rounded.
    return math.ceil(1.1 * num_steps)


def update_rate(config: PruneConfig, graph: Graph, first_step: int, last_step: int) -> tuple[int, int]:
    """Return the steps between two updates of the masks and the channels of each, with numbers in place of `auto`.

    With the numbers chosen here all channels can be masked from the first to the last step. So the target is reached
    whichever channels the norms choose, mostly about halfway.

    Args:
        config: The section `prune`.
        graph: Trace of the original model.
        first_step: No mask is chosen before this step.
        last_step: No mask changes after this step.

    Returns:
        `mask_interval_steps` and `channels_per_update`.
    """
    interval_steps, max_channels = config.mask_interval_steps, config.channels_per_update
    num_channels = max(1, sum(graph.widths) - sum(narrowest_widths(graph, config)))
    if interval_steps == "auto":
        wanted = _NUM_UPDATES if max_channels == "auto" else math.ceil(num_channels / max_channels)
        interval_steps = min(_MAX_INTERVAL_STEPS, max(1, (last_step - first_step) // wanted))
    if max_channels == "auto":
        max_channels = math.ceil(num_channels / max(1, num_mask_updates(first_step, last_step, interval_steps)))
    return interval_steps, max_channels
