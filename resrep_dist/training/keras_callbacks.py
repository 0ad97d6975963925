"""Callbacks for `model.fit` with a ResRepOptimizer: masks, checkpoints, curves.

They do in `fit` what the trainer does in its loop. Pass them in the order of this file, since the others need
ChannelMasks to have run before.

With several ranks, every rank calls `fit` with the same arguments on its own part of each batch, and all parts have the
same size. Keras averages the loss over a rank's part, and the mean of these means is the mean over the batch only if
the parts are equal. Keras does not know the other ranks, so the batch-norm statistics of the ranks drift apart. They
are averaged before each use. Since a running average is linear, that gives the same as averaging at every step.

The random layers of the model, such as Dropout, draw numbers that follow from seed, step and sample, see
`randomness.py`: a resumed fit draws what an undisturbed one does, and two ranks draw different masks.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.files import CheckpointFolder, snapshot
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.checkpoints.variables import batch_norm_statistics
from resrep_dist.checkpoints.writer import MAX_FAILED_CHECKPOINTS
from resrep_dist.config import PruneConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError, UserError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.monitoring.dashboard import write_layout
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.pruning.goals import agree_on_costs
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.pruning.targets import require_reachable_target
from resrep_dist.training.fit_checks import optimizer_of, require_equal_steps
from resrep_dist.training.fit_step import replace_fit_step
from resrep_dist.training.skipping import report_skipped

import numpy as np
from tensorflow import keras

_log = logging.getLogger(__name__)


class ChannelMasks(keras.callbacks.Callback):
    """Gives all ranks the state of rank 0 at the start, and chooses masks from `first_step` to `last_step`.

    Attributes:
        state: What the fit carries from step to step; None before it starts.

    Args:
        graph: The result of `trace`; the fitted model is `insert_compactors(model, graph)`.
        config: How masks are chosen. Learning rate and penalty are settings of the optimizer.
        first_step: No mask is chosen before this step.
        last_step: No mask changes after this step; see `last_mask_step`.
        cluster: The cluster that the optimizer has too; None for one created here.
        seed: Seed of the random layers, such as Dropout; the same on all ranks.
    """

    def __init__(
        self,
        graph: Graph,
        config: PruneConfig,
        *,
        first_step: int,
        last_step: int,
        cluster: Cluster | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._seed = seed
        self._cluster = cluster
        self._graph, self._config, self._first_step, self._last_step = graph, config, first_step, last_step
        self.pruner: Pruner | None = None
        self.state: TrainState | None = None

    @property
    def cluster(self) -> Cluster:
        """The ranks."""
        if self._cluster is None:
            self._cluster = Cluster()
        return self._cluster

    @property
    def step(self) -> int:
        """Number of steps made; 0 before the fit starts."""
        return self.state.step if self.state else 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the compactors and give all ranks the state of rank 0. A collective.

        Args:
            logs: Not used; part of the Keras interface.

        Raises:
            UserError: If the optimizer is not a ResRepOptimizer, or does not average over the same number of ranks, the
                model was compiled with `steps_per_execution`, the ranks have different numbers of steps, or the target
                cannot be reached.
        """
        optimizer = optimizer_of(self.model)
        self._cluster = self._cluster or optimizer.cluster
        num_averaged = optimizer.cluster.size if optimizer.cluster else 1
        if num_averaged != self.cluster.size:
            raise UserError(
                f"the optimizer: it averages gradients over {num_averaged} rank(s), expected {self.cluster.size} as in "
                "ChannelMasks, or each rank would train on its own gradients; make one resrep_dist.Cluster() and give "
                "it as `cluster` to ResRepOptimizer and to ChannelMasks"
            )
        require_equal_steps(self.params, self.cluster)
        agree_on_costs(self.cluster, self._config)
        require_reachable_target(self._graph, self._config)
        num_chosen = self.state.num_chosen if self.state else None
        self.state = TrainState(self.model, optimizer, KeptChannels.all_of(self._graph))
        self._statistics = batch_norm_statistics(self.model)
        times = {"first_step": self._first_step, "last_step": self._last_step}
        self.pruner = Pruner(self.state, self._graph, self._config, self.cluster, **times)
        if num_chosen is None:
            # Another object of this class may have masked channels in an earlier fit.
            num_chosen = sum(self._graph.widths) - sum(self.pruner.unmasked_widths())
        self.state.num_chosen = num_chosen
        self.pruner.warn_if_too_slow()
        replace_fit_step(self.model, self._seed, self.cluster)
        self.share()

    def share(self) -> None:
        """Give all ranks the state of rank 0. A collective."""
        state = _started(self, self)
        state.share(self.cluster)
        state.step = int(state.optimizer.iterations.numpy())

    def agree(self) -> None:
        """Average the batch-norm statistics, then compare the whole state over the ranks. A collective.

        Raises:
            DisagreementError: On every rank, if the state of a rank differs.
        """
        self.average_statistics()
        _started(self, self).agree(self.cluster)

    def average_statistics(self) -> None:
        """Set the batch-norm statistics to their average over the ranks. A collective."""
        if self.cluster.size > 1 and self._statistics:
            summed = self.cluster.sum(self._statistics, "statistics")
            for variable, value in zip(self._statistics, summed, strict=True):
                variable.assign(value / self.cluster.size)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Choose the masks if they are due.

        Raises:
            NonFiniteError: On every rank, if too many steps in a row were skipped.
        """
        assert self.pruner is not None and self.state is not None
        self.state.step = int(self.model.optimizer.iterations.numpy())
        if num_skipped := int(self.model.optimizer.num_skipped_in_a_row.numpy()):
            report_skipped(self.step, num_skipped, "a gradient of all ranks together")
        if self.pruner.is_due(self.step):
            self.agree()
            self.pruner.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add to Keras' progress and history which fraction of the multiply-adds is left, by mask and living."""
        if logs is not None and self.pruner is not None:
            logs["macs_by_mask"] = self.pruner.macs_fraction(self.pruner.unmasked_widths())
            logs["macs_living"] = self.pruner.macs_fraction(self.pruner.living_widths())
            if (goal := self.pruner.goal).kind != "macs":
                logs[f"{goal.kind}_by_mask"] = goal.fraction_at(self.pruner.unmasked_widths())
                logs[f"{goal.kind}_living"] = goal.fraction_at(self.pruner.living_widths())

    def on_test_begin(self, logs: Any = None) -> None:
        """Average the batch-norm statistics, so that all ranks validate the same model."""
        if self.state:
            self.average_statistics()

    def on_train_end(self, logs: Any = None) -> None:
        """Compare the final state over the ranks."""
        self.agree()


class Checkpoints(keras.callbacks.Callback):
    """Resumes from the newest checkpoint of a folder; saves every `interval_steps`, and at the end.

    The caller positions the data: start it at `saved_step()`, and pass the matching `initial_epoch` to `fit`. A
    learning rate that is a number is kept as well, as other callbacks have set it.

    Args:
        folder: Folder of the checkpoints.
        masks: The callback that has the state.
        interval_steps: Number of steps from one checkpoint to the next.
        num_kept: Number of checkpoints that are kept.
    """

    def __init__(self, folder: str | Path, masks: ChannelMasks, *, interval_steps: int, num_kept: int = 3) -> None:
        super().__init__()
        self._checkpoints, self._masks = CheckpointFolder(Path(folder), num_kept), masks
        self._interval_steps, self._num_failed, self._is_due = interval_steps, 0, False

    def saved_step(self) -> int:
        """Return the step of the newest checkpoint, or 0 if there is none. A collective."""
        return self._masks.cluster.from_root(self._saved_step)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the newest checkpoint on rank 0 and give all ranks its state."""
        state, self._is_due = _started(self._masks, self), False
        state.num_chosen, rate = self._masks.cluster.from_root(lambda: self._restore(state))
        self._masks.share()
        state.restore_learning_rate(rate)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Save the checkpoint that was due after the batch before."""
        if self._is_due:
            self._save()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See whether a checkpoint is due."""
        # Not yet: at the end of an epoch, which may be now, other callbacks change the learning rate or the weights.
        self._is_due = self._masks.step % self._interval_steps == 0

    def on_train_end(self, logs: Any = None) -> None:
        """Save the final state."""
        self._save(is_last=True)

    def _saved_step(self) -> int:
        # Without variables the checkpoint is verified, but nothing is loaded.
        position = self._checkpoints.restore_newest({}, is_whole=False)
        return position["step"] if position else 0

    def _restore(self, state: TrainState) -> tuple[int, Any]:
        step = int(state.optimizer.iterations.numpy())
        position = self._checkpoints.restore_newest(state)
        if position is None:
            return state.num_chosen, None
        # In a second fit of the same program the rate may be a new one.
        return position["num_chosen"], position.get("learning_rate") if position["step"] != step else None

    def _save(self, is_last: bool = False) -> None:
        self._is_due = False
        self._masks.agree()
        state = _started(self._masks, self)
        self._masks.cluster.from_root(lambda: self._write(state, is_last))

    def _write(self, state: TrainState, is_last: bool) -> None:
        try:
            rate = {} if state.learning_rate is None else {"learning_rate": state.learning_rate}
            self._checkpoints.save(state.step, snapshot(state), {"num_chosen": state.num_chosen, **rate})
            self._num_failed = 0
        except CheckpointWriteError as error:
            self._num_failed += 1
            if is_last or self._num_failed >= MAX_FAILED_CHECKPOINTS:
                raise
            _log.error("%s; trying again at the next interval", error)


class PruningCurves(keras.callbacks.Callback):
    """Writes TensorBoard curves on rank 0: loss and metrics of `fit`, learning rate, multiply-adds, widths, row norms.

    Args:
        folder: Folder of the event files.
        masks: The callback that has the state.
        interval_steps: Number of steps from one point to the next.
    """

    def __init__(self, folder: str | Path, masks: ChannelMasks, *, interval_steps: int = 100) -> None:
        super().__init__()
        self._masks, self._interval_steps = masks, interval_steps
        self._monitor = Monitor("fit", Path(folder) if masks.cluster.is_root else None, None, 0)

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the curves at the current step."""
        _started(self._masks, self)
        self._monitor.start(self._masks.step, write_layout)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Add points if they are due."""
        step, pruner = self._masks.step, self._masks.pruner
        if step % self._interval_steps == 0 and self._masks.cluster.is_root and pruner is not None:
            scalars, histograms = pruner.curves()
            scalars |= _curves("train", logs or {})
            scalars["train/learning_rate"] = self.model.optimizer.rate_at(step - 1)
            self._monitor.scalars(step, scalars)
            self._monitor.histograms(step, histograms)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the results of the validation inside `fit`."""
        values = {name.removeprefix("val_"): value for name, value in (logs or {}).items() if name.startswith("val_")}
        self._monitor.scalars(self._masks.step, _curves("validation", values))

    def on_train_end(self, logs: Any = None) -> None:
        """Close the curves."""
        self._monitor.close()


def _curves(section: str, logs: Mapping[str, Any]) -> dict[str, float]:
    """The points of what Keras logs; a metric may have a value for each class."""
    points: dict[str, float] = {}
    for name, value in logs.items():
        values = np.ravel(value)
        names = [name] if np.ndim(value) == 0 else [f"{name}/{index}" for index in range(len(values))]
        points |= {f"{section}/{each}": float(number) for each, number in zip(names, values, strict=True)}
    return points


def _started(masks: ChannelMasks, callback: keras.callbacks.Callback) -> TrainState:
    """The state of a fit that has started.

    Raises:
        UserError: if `callback` stands before ChannelMasks in the list of callbacks.
    """
    if masks.state is None:
        raise UserError(f"callbacks: {type(callback).__name__} came before ChannelMasks; put ChannelMasks first")
    return masks.state
