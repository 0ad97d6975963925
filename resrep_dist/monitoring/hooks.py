"""The interface for what observes a run: the project's own curves and warnings, and a user's trackers."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import one_line
from resrep_dist.pruning.pruner import Pruner

_log = logging.getLogger(__name__)


class Watched(Protocol):
    """What a hook can read of a trainer."""

    @property
    def description(self) -> str:
        """Name of the phase: `prune`, `base` or `train`."""
        ...

    @property
    def step(self) -> int:
        """Number of steps made."""
        ...

    @property
    def num_steps(self) -> int:
        """Planned number of steps of the phase."""
        ...

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        ...

    @property
    def cluster(self) -> Cluster:
        """The ranks."""
        ...

    @property
    def state(self) -> TrainState:
        """All that the run carries from step to step; `state.model` is the model in training."""
        ...

    @property
    def pruner(self) -> Pruner | None:
        """Chooses the masks; None in a phase that does not prune."""
        ...

    @property
    def collective_seconds(self) -> float | None:
        """Time of the step's collective alone, at the last evaluation; None before, and on one rank."""
        ...

    @property
    def checkpoint_write_seconds(self) -> float | None:
        """Time to write the last checkpoint, on rank 0; None before the first, and if it failed."""
        ...


class Hook:
    """Base class of what observes a run. Its methods do nothing.

    All methods are called on every rank, after the same step. None may call a collective. A hook that works only on
    rank 0 checks `trainer.cluster.is_root`. An error that a hook raises ends the run. Example:

        class Tracker(resrep_dist.Hook):
            def on_step(self, trainer, metrics):
                if metrics and trainer.cluster.is_root:
                    mlflow.log_metrics(metrics, step=trainer.step)
    """

    def on_start(self, trainer: Watched) -> None:
        """Called when the phase starts or resumes, at `trainer.step`.

        Args:
            trainer: The run.
        """

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterable[Any]:
        """Return the batches that this rank trains on from here; a hook can look at them as they pass.

        Args:
            trainer: The run.
            batches: The batches, images [B, height, width, channels] and labels [B] each.
        """
        return batches

    def on_step(self, trainer: Watched, metrics: Mapping[str, float] | None) -> None:
        """Called after each step, and after the masks were chosen and the model shrunk if that was due.

        Args:
            trainer: The run.
            metrics: At logging steps, means over all ranks since the last logging step: `loss`, `top1` (percent; with
                another task `label_accuracy` or `pixel_accuracy`),
                `learning_rate`, and the number `skipped_steps`. None after all other steps, which do not wait for the
                device.
        """

    def on_evaluation(self, trainer: Watched, values: Mapping[str, float], seconds: float) -> None:
        """Called after an evaluation on the validation set.

        Args:
            trainer: The run.
            values: `top1` and `top5` in percent, and the configured metrics; with another task its scores, see
                `Evaluator.evaluate`.
            seconds: Time that training stood still.
        """

    def before_checkpoint(self, trainer: Watched) -> None:
        """Called before a checkpoint: write to disk what a run that resumes from it will need.

        Args:
            trainer: The run.
        """

    def on_checkpoint(self, trainer: Watched, seconds: float) -> None:
        """Called when the state is copied; it is written while training continues.

        Args:
            trainer: The run.
            seconds: Time that training stood still.
        """

    def on_shrink(self, trainer: Watched, figures: Mapping[str, float]) -> None:
        """Called when the model in training was replaced by a smaller one.

        Args:
            trainer: The run.
            figures: `training_macs_fraction` (with compactors, relative to the base model), `build_seconds` and
                `tracing_seconds`.
        """

    def on_end(self, trainer: Watched) -> None:
        """Called when the phase ends, also if it ends with an error.

        Args:
            trainer: The run.
        """


class Hooks(Hook):
    """Several hooks as one, called in their order.

    Args:
        hooks: The hooks.
    """

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = tuple(hooks)

    def on_start(self, trainer: Watched) -> None:
        """Call `on_start` of each hook."""
        for hook in self._hooks:
            hook.on_start(trainer)

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterable[Any]:
        """Call `wrap_batches` of each hook, on the batches that the one before returned."""
        for hook in self._hooks:
            batches = hook.wrap_batches(trainer, batches)
        return batches

    def on_step(self, trainer: Watched, metrics: Mapping[str, float] | None) -> None:
        """Call `on_step` of each hook."""
        for hook in self._hooks:
            hook.on_step(trainer, metrics)

    def on_evaluation(self, trainer: Watched, values: Mapping[str, float], seconds: float) -> None:
        """Call `on_evaluation` of each hook."""
        for hook in self._hooks:
            hook.on_evaluation(trainer, values, seconds)

    def before_checkpoint(self, trainer: Watched) -> None:
        """Call `before_checkpoint` of each hook."""
        for hook in self._hooks:
            hook.before_checkpoint(trainer)

    def on_checkpoint(self, trainer: Watched, seconds: float) -> None:
        """Call `on_checkpoint` of each hook."""
        for hook in self._hooks:
            hook.on_checkpoint(trainer, seconds)

    def on_shrink(self, trainer: Watched, figures: Mapping[str, float]) -> None:
        """Call `on_shrink` of each hook."""
        for hook in self._hooks:
            hook.on_shrink(trainer, figures)

    def on_end(self, trainer: Watched) -> None:
        """Call `on_end` of each hook, also if one raises an error.

        The first error is raised after that, unless the run ends by an error of its own.
        """
        is_failing, errors = sys.exc_info()[1] is not None, []
        for hook in self._hooks:
            try:
                hook.on_end(trainer)
            except Exception as error:  # a tracker of a program may raise anything
                _log.error("%s.on_end failed (%s: %s)", type(hook).__name__, type(error).__name__, one_line(error))
                errors.append(error)
        if errors and not is_failing:
            raise errors[0]
