"""The schedule of a pruning phase: what it is in words, and what is wrong with it."""

import dataclasses
import logging
import math

from resrep_dist.config import PruneConfig
from resrep_dist.pruning.goals import distrusted_costs

_log = logging.getLogger(__name__)
PAPER_LASSO_STRENGTH = 1e-4
"""lambda of the paper, for all rows."""


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
    pruned_step: int
    """Step by which all should be pruned, so that nothing is left but to merge; the end of the phase if unknown."""
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
            f"Mask updates: {self.num_updates:,}, one every {self.interval_steps:,} steps from step "
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
        advice = f"raise prune.lasso_strength ({self.lasso_strength:g}) to at least {rounded_up(self.needed_strength)}"
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


def num_mask_updates(first_step: int, last_step: int, interval_steps: int) -> int:
    """Return the number of updates of the masks, which happen at multiples of the interval.

    Args:
        first_step: No mask is chosen before this step.
        last_step: No mask changes after this step.
        interval_steps: Number of steps between two updates.
    """
    return max(0, last_step // interval_steps - (first_step - 1) // interval_steps)


def rounded_up(value: float) -> str:
    """Return a number with two digits that is not smaller.

    Args:
        value: A number above zero.
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:.2g}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _epochs(number: float) -> str:
    """Return a number of epochs that is not smaller, without more digits than one would type."""
    return f"{math.ceil(number)}" if number >= 10 else f"{math.ceil(10 * number) / 10:g}"
