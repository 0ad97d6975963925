"""Warns early of a run that goes wrong without an error. Each warning is logged once, and names the layer if it can."""

import logging
import math
from collections.abc import Mapping

from resrep_dist.config import PruneConfig, TrainingConfig
from resrep_dist.monitoring.hooks import Hook, Watched
from resrep_dist.pruning.pruner import Pruner

_log = logging.getLogger(__name__)
# A warning needs this many bad logging steps in a row.
_PATIENCE = 5
_MAX_LOSS_OF_LOWEST = 3.0
_MAX_LOSS_OF_GUESSING = 1.1
# Compactors start with rows of norm 1.
_MIN_ROW_NORM = 1e-3


class Health(Hook):
    """Checks the figures of one phase, and logs each warning once, on rank 0.

    Args:
        config: What is pruned, and how; None in a phase that does not prune.
        guessing_loss: Loss of a model that guesses; None if it is not known, see `guessing_loss`.
    """

    def __init__(self, config: PruneConfig | None, guessing_loss: float | None) -> None:
        self._config, self._guessing = config, guessing_loss
        self._lowest_loss = math.inf
        self._num_bad = {"above guessing": 0, "rising": 0}
        self._said: set[str] = set()

    def on_step(self, trainer: Watched, metrics: Mapping[str, float] | None) -> None:
        """Check the figures of a logging step."""
        if metrics is not None and trainer.cluster.is_root:
            self.see(trainer.step, metrics["loss"], trainer.pruner)

    def see(self, step: int, loss: float, pruner: Pruner | None) -> None:
        """Check the loss, and the channels if the phase prunes.

        Args:
            step: Number of steps made.
            loss: Mean loss since the last logging step.
            pruner: Chooses the masks; None in a phase that does not prune.
        """
        self._see_loss(step, loss)
        if pruner is not None:
            self._see_layers(step, pruner)
            self._see_target(step, pruner)

    def _see_loss(self, step: int, loss: float) -> None:
        self._lowest_loss = min(self._lowest_loss, loss)
        guessing = self._guessing
        advice = (
            f"the training diverges; lower train.learning_rate and start again; first seen {_PATIENCE} log lines ago"
        )
        if self._is_bad_for_long("above guessing", guessing is not None and loss > _MAX_LOSS_OF_GUESSING * guessing):
            self._warn(
                "above guessing",
                f"Step {step}: the loss, {loss:.3g}, stays above that of guessing, {guessing:.3g}: {advice}.",
            )
        # A small loss can rise by a large factor while channels die, which is normal.
        is_large = guessing is None or loss > guessing / 2
        if self._is_bad_for_long("rising", is_large and loss > _MAX_LOSS_OF_LOWEST * self._lowest_loss > 0):
            self._warn(
                "rising",
                f"Step {step}: the loss, {loss:.3g}, stays far above its lowest, {self._lowest_loss:.3g}: {advice}.",
            )

    def _is_bad_for_long(self, name: str, is_bad: bool) -> bool:
        self._num_bad[name] = self._num_bad[name] + 1 if is_bad else 0
        return self._num_bad[name] >= _PATIENCE

    def _see_layers(self, step: int, pruner: Pruner) -> None:
        assert self._config is not None
        min_channels = self._config.min_channels
        figures = zip(
            pruner.graph.groups, pruner.unmasked_widths(), pruner.living_widths(), pruner.norms(), strict=True
        )
        for group, unmasked, living, norms in figures:
            num_channels, layer = group.num_channels, f"Step {step}: layer {group.name}"
            if max(norms) <= _MIN_ROW_NORM:
                self._warn(
                    f"{group.name} is empty",
                    f"{layer} carries almost no signal: the largest row norm of its {num_channels} channels is "
                    f"{max(norms):.1g}; lower prune.lasso_strength, or add it to prune.exclude.",
                )
            if min_channels * group.num_parts >= num_channels:
                continue
            if living <= min_channels:
                self._warn(
                    f"{group.name} is dead",
                    f"{layer} is at its minimum: {living * group.num_parts} of its {num_channels} channels live.",
                )
            elif unmasked <= min_channels:
                self._warn(
                    f"{group.name} is masked",
                    f"{layer} goes to its minimum: the masks leave {unmasked * group.num_parts} of its {num_channels} "
                    "channels; a higher prune.min_channels keeps more, prune.exclude all of them.",
                )

    def _see_target(self, step: int, pruner: Pruner) -> None:
        assert self._config is not None
        goal = pruner.goal
        target, reached = goal.fraction, goal.fraction_at(pruner.unmasked_widths())
        if pruner.is_settled(step) and reached > target:
            self._warn(
                "target",
                f"Step {step}: the target will be missed: masks no longer change and leave {100 * reached:.1f} % of "
                f"the {goal.cost.noun}, {100 * target:.1f} % were asked for; raise prune.channels_per_update or train "
                "longer.",
            )

    def _warn(self, name: str, message: str) -> None:
        if name not in self._said:
            self._said.add(name)
            _log.warning("%s", message)


def guessing_loss(training: TrainingConfig, num_classes: int) -> float | None:
    """Return the loss of a model that guesses, whose logits are equal.

    Args:
        training: Name of the loss, and class weights.
        num_classes: Number of classes.

    Returns:
        The cross-entropy; None for other losses and with class weights.
    """
    is_plain = training.loss == "sparse_categorical_crossentropy" and not training.class_weights
    return math.log(num_classes) if is_plain else None
