"""What may watch a run: one small protocol for the project's own curves and warnings and for a user's trackers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.pruning.pruner import Pruner


class Watched(Protocol):
    """What a hook sees of a trainer. It is there to be read."""

    @property
    def description(self) -> str:
        """`prune`, `base` or `train`."""
        ...

    @property
    def step(self) -> int:
        """Number of steps made."""
        ...

    @property
    def num_steps(self) -> int:
        """Planned length of the phase."""
        ...

    @property
    def config(self) -> Config:
        """The run's configuration."""
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
        """What chooses the masks; None in a phase that does not prune."""
        ...

    @property
    def collective_seconds(self) -> float | None:
        """Time of a step's collective by itself, of the last evaluation; None before, and on one rank."""
        ...

    @property
    def checkpoint_write_seconds(self) -> float | None:
        """Time that writing the last checkpoint took, on rank 0; None if none was written."""
        ...


class Hook:
    """Base class of what watches a run; every method does nothing here.

    All methods are called on every rank, after the same step. None may call a collective, so one that works on rank
    0 alone asks `trainer.cluster.is_root`. An error that a hook raises ends the run. For example:

        class Tracker(resrep_dist.Hook):
            def on_step(self, trainer, metrics):
                if metrics and trainer.cluster.is_root:
                    mlflow.log_metrics(metrics, step=trainer.step)
    """

    def on_start(self, trainer: Watched) -> None:
        """The phase starts, or resumes, at `trainer.step`."""

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterable[Any]:
        """The batches that this rank trains on from here: return them, perhaps looked at on their way."""
        return batches

    def on_step(self, trainer: Watched, metrics: Mapping[str, float] | None) -> None:
        """A step was made, and masks were chosen and the model shrunk if that was due.

        Args:
            metrics: at logging steps means over all ranks since the last one: `loss`, `top1` (percent),
                `learning_rate`, and the count `skipped_steps`. None after all other steps, which do not wait for the
                device.
        """

    def on_evaluation(self, trainer: Watched, values: Mapping[str, float], seconds: float) -> None:
        """The validation set was evaluated.

        Args:
            values: `top1` and `top5`, percent, and the configured metrics.
            seconds: that training stood still.
        """

    def before_checkpoint(self, trainer: Watched) -> None:
        """A checkpoint is about to be taken: put on disk what a run that resumes from it expects to find."""

    def on_checkpoint(self, trainer: Watched, seconds: float) -> None:
        """The state was copied, and is being written beside the training.

        Args:
            seconds: that training stood still.
        """

    def on_shrink(self, trainer: Watched, figures: Mapping[str, float]) -> None:
        """The model in training was replaced by a smaller one.

        Args:
            figures: `training_macs_fraction` (compactors included, relative to the base model), `build_seconds` and
                `tracing_seconds`.
        """

    def on_end(self, trainer: Watched) -> None:
        """The phase ends, also by an error."""


class Hooks(Hook):
    """Several hooks as one, called in their order."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = tuple(hooks)

    def on_start(self, trainer: Watched) -> None:
        for hook in self._hooks:
            hook.on_start(trainer)

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterable[Any]:
        for hook in self._hooks:
            batches = hook.wrap_batches(trainer, batches)
        return batches

    def on_step(self, trainer: Watched, metrics: Mapping[str, float] | None) -> None:
        for hook in self._hooks:
            hook.on_step(trainer, metrics)

    def on_evaluation(self, trainer: Watched, values: Mapping[str, float], seconds: float) -> None:
        for hook in self._hooks:
            hook.on_evaluation(trainer, values, seconds)

    def before_checkpoint(self, trainer: Watched) -> None:
        for hook in self._hooks:
            hook.before_checkpoint(trainer)

    def on_checkpoint(self, trainer: Watched, seconds: float) -> None:
        for hook in self._hooks:
            hook.on_checkpoint(trainer, seconds)

    def on_shrink(self, trainer: Watched, figures: Mapping[str, float]) -> None:
        for hook in self._hooks:
            hook.on_shrink(trainer, figures)

    def on_end(self, trainer: Watched) -> None:
        for hook in self._hooks:
            hook.on_end(trainer)
