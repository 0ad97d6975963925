"""When masks change and how strong the penalty is: settings given as `auto` become numbers, and all are checked."""

import dataclasses
import logging
import math

from resrep_dist.config import PruneConfig
from resrep_dist.graph import Graph
from resrep_dist.pruning.goals import distrusted_costs, with_checksum
from resrep_dist.pruning.rules import last_step_to_die, steps_to_die, strength_to_die
from resrep_dist.pruning.targets import fewest_channels, last_mask_step, narrowest_widths

import numpy as np

_log = logging.getLogger(__name__)
PAPER_LASSO_STRENGTH = 1e-4
"""lambda of the paper, for all rows."""
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


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
    """The schedule of a pruning phase, in numbers."""

    config: PruneConfig
    """The section `prune` with a number in place of each `auto`, and the checksum of its table of times."""
    chosen: tuple[str, ...]
    """Names of the settings that were `auto`."""
    lasso_strength: float
    """Strength of the penalty."""
    first_step: int
    """No mask is chosen before this step."""
    last_step: int
    """No mask changes after this step."""
    interval_steps: int
    """Number of steps between two updates."""
    num_steps: int
    """Length of the phase."""
    num_needed_updates: int
    """Minimum number of updates that choose enough channels for the target."""
    death_steps: int | None
    """Number of steps in which a row of norm 1 dies that is masked at `first_step`; None if it does not die."""
    needed_strength: float | None
    """Minimum strength with which rows that are masked by the last needed update die in time; None if the phase ends
    before that update."""
    is_in_time: bool
    """True if a row of norm 1 that is masked at `last_step` dies in time."""
    steps_per_epoch: float
    """Number of steps per epoch; not rounded."""
    unhurried_steps: int | None
    """Minimum length of a phase with a chosen penalty in which no row dies within the momentum's memory. None if
    the learning rate is too high for any."""

    @property
    def num_updates(self) -> int:
        """Number of updates from `first_step` to `last_step`."""
        return num_mask_updates(self.first_step, self.last_step, self.interval_steps)

    def describe(self) -> str:
        """Return the schedule in one sentence, and which of its numbers were chosen."""
        dies = f"in about {self.death_steps:,} steps" if self.death_steps else "not within the phase"
        return (
            f"Masks change at {self.num_updates:,} updates, every {self.interval_steps:,} steps from step "
            f"{self.first_step:,} to {self.last_step:,} of {self.num_steps:,}; the target needs at least "
            f"{self.num_needed_updates:,}; a row of norm 1 that is masked first dies {dies}."
            + (f" Chosen: {self.choices()}." if self.chosen else "")
        )

    def choices(self) -> str:
        """Return the settings that were `auto`, with the numbers in their place."""
        return ", ".join(f"prune.{name} {getattr(self.config, name):g}" for name in self.chosen)

    def problems(self) -> list[str]:
        """Return what keeps the phase from reaching its target, one sentence with numbers and the fix each."""
        dies = f"dies in about {self.death_steps:,} steps" if self.death_steps else "does not die within the phase"
        figures = (
            f"a row of norm 1 {dies}, the masks need {self.num_needed_updates:,} updates, one every "
            f"{self.interval_steps:,} steps from step {self.first_step:,} on, the phase has {self.num_steps:,} steps"
        )
        if self.needed_strength is None:
            return [
                f"The target will be missed: {figures}: raise prune.channels_per_update, lower "
                "prune.mask_interval_steps or prune.mask_start_epochs, or train longer."
            ]
        # Rounded up, so that the number is enough when it is typed.
        advice = f"raise prune.lasso_strength ({self.lasso_strength:g}) to at least {_rounded_up(self.needed_strength)}"
        if self.config.mask_stop_fraction is not None:
            advice += ", or lower prune.mask_stop_fraction"
        if self.num_updates < self.num_needed_updates:
            if self.is_in_time and self.lasso_strength >= self.needed_strength:
                advice = "raise prune.mask_stop_fraction or prune.channels_per_update"
            return [f"The target will be missed: {figures}, and masks change for the last time at step "
                    f"{self.last_step:,}: {advice}."]  # fmt: skip
        if not self.is_in_time:
            return [
                f"The penalty is too weak for the length of the phase: {figures}, and a row that is masked at step "
                f"{self.last_step:,}, where masks last change, may be alive at the end: {advice}, or train longer."
            ]
        return []

    def cautions(self) -> list[str]:
        """Return what costs accuracy although the target is reached: rows that have to die in a hurry.

        The momentum of the compactors averages over 1 / (1 - momentum) steps. A penalty that takes a row to zero in
        less pulls hard at the rows of the channels that stay, too, and the objective has no time to answer.
        """
        memory_steps = round(1 / (1 - self.config.compactor_momentum))
        kept = self.config.kept_lasso_strength
        is_apart = kept is not None and kept < self.lasso_strength
        if is_apart or self.death_steps is None or self.death_steps >= memory_steps:
            return []
        if self.unhurried_steps is None:
            advice = "Lower train.learning_rate"
        elif self.num_steps < self.unhurried_steps:
            advice = (
                f"Raise train.num_epochs from {_short(self.num_steps / self.steps_per_epoch)} to at least "
                f"{_epochs(self.unhurried_steps / self.steps_per_epoch)}, {self.unhurried_steps:,} steps"
            )
        else:
            advice = "Lower prune.lasso_strength, or set it to auto"
        if self.config.rule == "radial":
            advice = f"Set prune.kept_lasso_strength to {PAPER_LASSO_STRENGTH:g}, or {advice[0].lower()}{advice[1:]}"
        return [
            f"This is likely to cost accuracy: a row of norm 1 dies in about {self.death_steps:,} steps, less than the "
            f"{memory_steps:,} over which the compactors' momentum averages, and a penalty of "
            f"{self.lasso_strength:.2g} pulls as hard at the channels that stay. {advice}."
        ]

    def warnings(self) -> list[str]:
        """Return `problems` and `cautions`, and what is wrong with the table of times."""
        return [*self.problems(), *self.cautions(), *distrusted_costs(self.config)]

    def log(self) -> None:
        """Log the schedule, and what is wrong with it as warnings."""
        _log.info("%s", self.describe())
        for warning in self.warnings():
            _log.warning("%s", warning)


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
    return MaskSchedule(
        config=numbers,
        chosen=tuple(name for name in _AUTOMATIC if getattr(config, name) == "auto"),
        lasso_strength=strength,
        first_step=first_step,
        last_step=last_step,
        interval_steps=interval_steps,
        num_steps=num_steps,
        num_needed_updates=num_needed,
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
    return max(PAPER_LASSO_STRENGTH, float(_rounded_up(needed)) if needed else 0.0)


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


_AUTOMATIC = ("lasso_strength", "mask_start_epochs", "mask_interval_steps", "channels_per_update")


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


def num_mask_updates(first_step: int, last_step: int, interval_steps: int) -> int:
    """Return the number of updates of the masks, which happen at multiples of the interval.

    Args:
        first_step: No mask is chosen before this step.
        last_step: No mask changes after this step.
        interval_steps: Number of steps between two updates.
    """
    return max(0, last_step // interval_steps - (first_step - 1) // interval_steps)


def _rounded_up(value: float) -> str:
    """Return a number with two digits that is not smaller."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:.2g}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _epochs(number: float) -> str:
    """Return a number of epochs that is not smaller, without more digits than one would type."""
    return f"{math.ceil(number)}" if number >= 10 else f"{math.ceil(10 * number) / 10:g}"
