"""Runs one training phase: steps, masks, shrinks, evaluations and checkpoints."""

import gc
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from resrep_dist.checkpoints.same_data import check_data_of_ranks
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.checkpoints.writer import CheckpointWriter
from resrep_dist.config import Config
from resrep_dist.config.tasks import score_of
from resrep_dist.data.batches import Batches
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.stopping import StopRequest
from resrep_dist.errors import CheckpointError, StoppedError, UserError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.monitoring.defaults import default_hooks
from resrep_dist.monitoring.hooks import Hook, Hooks
from resrep_dist.monitoring.monitor import default_console
from resrep_dist.pruning.goals import agree_on_costs
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.shrinking.shrinker import Shrinker
from resrep_dist.training.best import BestCheckpoint
from resrep_dist.training.determinism import enable_determinism
from resrep_dist.training.distillation import make_teacher
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import fingerprints, model_for_training, plan_phase
from resrep_dist.training.start_checks import check_start

import tensorflow as tf
from rich.console import Console
from tensorflow import keras

_log = logging.getLogger(__name__)


class Trainer:
    """Trains a model on the ranks of a cluster, and prunes it if a graph is given.

    Attributes:
        state: State of the run. Its model is a copy of `model` with compactors, in the configured precision.
        pruner: Chooses the masks; None without a graph.
        validation_top1: Top-1, or the score of another task, of the last evaluation, percent; None before the first.
        collective_seconds: Time of the step's collectives alone, at the last evaluation; None before, and on one rank.

    Args:
        model: A functional Keras model.
        graph: The result of `trace(model)`; None for training without pruning.
        config: The configuration of the run. The phase is `train`, or `base` if there is no graph but a section
            `prune`.
        train_data: The training set.
        validation_data: The validation set.
        cluster: The ranks; by default those that the launcher started.
        workdir: Folder of checkpoints and curves, those of a base model in its folder `base`; None to write nothing.
        console: Where progress is shown: by default on the terminal, or in lines of the log. None to show none.
        hooks: Hooks that observe the run, in addition to curves, warnings and the sample log; see `Hook`.
        accepts_changed_data: True to resume from checkpoints of other data, which is logged. False to refuse it.

    Raises:
        ConfigError: If data, model and settings do not fit together.
        DataError: If the ranks have different data.
        ModelError: If the graph has nothing to prune.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: Graph | None,
        config: Config,
        train_data: ImageSource,
        validation_data: ImageSource,
        *,
        cluster: Cluster | None = None,
        workdir: Path | str | None = None,
        console: Console | Literal["default"] | None = "default",
        hooks: Sequence[Hook] = (),
        accepts_changed_data: bool = False,
    ) -> None:
        self.cluster = cluster or Cluster(config.training.deterministic)
        self.graph = graph
        workdir = Path(workdir) if workdir is not None else None
        self._train_data, self._validation_data, self._workdir = train_data, validation_data, workdir
        enable_determinism(config.training, config.seed)
        if graph:
            # Before a rank reads its own table, and stops alone at what is wrong with it.
            agree_on_costs(self.cluster, config.prune)
        data: Any = {"data": fingerprints(train_data, validation_data), "accepts_changed_data": accepts_changed_data}
        check_data_of_ranks(self.cluster, data["data"])
        check_start(config, model, graph, train_data, validation_data, self.cluster.size)
        self._plan = plan_phase(config, graph, len(train_data))
        self.config = config = self._plan.resolved(config)
        self.num_steps = self._plan.num_steps
        self._teacher = make_teacher(model, config) if graph else None
        model = model_for_training(model, graph, config, self.cluster)
        self._live = LiveModel(model, graph, self._plan, config.training, self.cluster, teacher=self._teacher)
        self._shrinker: Shrinker | None = None
        if graph and self._plan.masks:
            self._shrinker = Shrinker(graph, config, self._plan.masks, self.cluster)
            self._shrinker.check(model, config.training.gradient_clip_norm)
            self._plan.masks.log()
        self.description = "prune" if graph else "base" if config.prune else "train"
        folder = workdir / "base" if workdir and self.description == "base" else workdir
        checkpoints, num_kept = folder / "checkpoints" if folder else None, config.checkpoint.num_kept
        self.checkpoints = CheckpointWriter(checkpoints, num_kept, self.cluster, graph, config.to_dict(), **data)
        self._best = BestCheckpoint(folder, self.cluster, graph, config)
        sweep_row = str(workdir.resolve()) if workdir and folder == workdir else None
        console = default_console(self.cluster.is_root) if console == "default" else console
        options: dict[str, Any] = {"cluster": self.cluster, "folder": folder, "sweep_row": sweep_row}
        own = default_hooks(config, graph, self.description, self.num_steps, console=console, **options)
        self._hooks = Hooks([*own, *hooks])
        self.validation_top1: float | None = None
        self.collective_seconds: float | None = None
        self._saved_step: int | None = None
        self._batches: Iterator[Any] = iter(())

    @property
    def step(self) -> int:
        """Number of steps made."""
        return self.state.step

    @property
    def state(self) -> TrainState:
        """All that the run carries from step to step."""
        return self._live.state

    @property
    def model(self) -> keras.Model:
        """The model in training."""
        return self.state.model

    @property
    def evaluated_model(self) -> keras.Model:
        """The model to evaluate and merge: the one with averaged weights, or without them that in training."""
        return self.state.evaluated_model()

    @property
    def pruner(self) -> Pruner | None:
        """Chooses the masks; None without a graph, and once the model was merged during the training."""
        return self._live.pruner

    @property
    def checkpoint_write_seconds(self) -> float | None:
        """Time that writing the last checkpoint took on rank 0; None before the first, and if it failed."""
        return self.checkpoints.write_seconds

    def run(self, stop: StopRequest | None = None) -> None:
        """Resume from the newest checkpoint, train to the end, and write the last checkpoint.

        Args:
            stop: The request that can stop the run. None for signals and a file `stop` in the workdir.

        Raises:
            StoppedError: On all ranks, if one of them was asked to stop; the checkpoint is written.
            NonFiniteError: On all ranks, if too many steps in a row were not finite.
            DisagreementError: On all ranks, if their states differ.
            CheckpointWriteError: On all ranks, if several checkpoints in a row could not be written.
        """
        if stop is None:
            with StopRequest(self._workdir if self.cluster.is_root else None) as own:
                return self.run(own)
        try:
            self.start()
            with self.cluster.watchdog.watching(self.config.faults):
                try:
                    while not self.is_done():
                        self._stop_if_asked(stop)
                        self.train_until(self.step + 1)
                    self._save(is_last=True)
                finally:
                    # With the watchdog's long limit: otherwise a disk that hangs would keep a failed run from ending.
                    with self.cluster.watchdog.patient():
                        self.checkpoints.wait()
        finally:
            self._hooks.on_end(self)

    def start(self) -> None:
        """Continue from the newest checkpoint, or start from scratch if there is none. A collective.

        Raises:
            CheckpointError: If the checkpoint cannot be used, or the model was shrunk since and lacks its channels.
            UserError: If this Trainer has made steps and there is no checkpoint to go on from.
        """
        if self.step and not self.checkpoints.has_any():
            raise UserError(
                f"step {self.step}: this Trainer has made steps, and there is no checkpoint to go on from; make a new "
                "Trainer, with a `workdir` if it is to go on after a stop"
            )
        if self._teacher:
            self._teacher.share(self.cluster)
        self._live.step.forget_last()
        self._live.follow(self.checkpoints.restore(self._state_at))
        if self.step:
            _log.info("Resumed at step %d.", self.step)
        if "refused" in (self.state.early_merge or {}):
            _log.warning(
                "The merge at step %(step)d was refused (%(refused)s) and is not tried again: it goes on as exact. "
                "`resrep train CONFIG --from DIR --workdir NEW` prunes its base anew.",
                self.state.early_merge,
            )
        self._saved_step = self.step if self.step else None
        self._hooks.on_start(self)
        self._batches = iter(self._hooks.wrap_batches(self, self._training_batches()))

    def train_until(self, step: int) -> None:
        """Train until a number of steps is made, or to the end if that comes first. A collective.

        Args:
            step: Number of steps, counted from the beginning of the phase.

        Raises:
            UserError: If a hook has ended the batches.
        """
        for images, labels in itertools.islice(self._batches, max(0, step - self.step)):
            self.cluster.watchdog.beat(self.step + 1)
            self._live.step.run(images, labels)
            if self.pruner and self.pruner.is_due(self.step):
                self._agree()
                self.pruner.update()
            if self._shrinker and self.pruner and self._shrinker.is_due(self.step):
                with self.cluster.watchdog.patient():
                    self._shrink(self._shrinker, self.pruner, images, labels)
            metrics = self._read_metrics() if self.step % self.config.logging.interval_steps == 0 else None
            self._hooks.on_step(self, metrics)
            if self._plan.ends_epochs(self.step, self.config.logging.evaluation_epochs) or self.is_done():
                self._evaluate()
            if self.step % self.config.checkpoint.interval_steps == 0:
                self._save()
            if self.step >= self.num_steps and self.is_done():
                return
        if self.step < step:
            raise UserError(
                f"step {self.step}: a hook ended the batches, expected batches without end; `wrap_batches` has to "
                "yield every batch that it gets, in the same order"
            )

    def is_done(self) -> bool:
        """Return True if all steps are made and every masked row is dead, or the extension is used up."""
        if self.step < self.num_steps:
            return False
        if self.step >= self._plan.max_steps or self.pruner is None:
            return True
        is_due = (self.step - self.num_steps) % self._plan.require_masks().interval_steps == 0
        return is_due and self.pruner.num_masked_alive() == 0

    def _stop_if_asked(self, stop: StopRequest) -> None:
        """Write a checkpoint and raise StoppedError, on all ranks at the same step, if any was asked to."""
        if self._live.step.is_stop_requested():
            self._save(is_last=True)
            raise StoppedError(
                f"stopped at step {self.step} as asked, the checkpoint is written; start the same command again to "
                "go on from there"
            )
        if stop.is_set():
            self._live.step.request_stop()

    def _state_at(self, channels: KeptChannels | None) -> TrainState:
        if self._shrinker is None or channels is None:
            return self.state
        if self.graph and self.state.channels not in (channels, KeptChannels.all_of(self.graph)):
            raise CheckpointError(
                f"step {self.step}: this Trainer has shrunk its model, and the checkpoint is of another width; make a "
                "new Trainer with the same arguments, which goes on from the checkpoint"
            )
        return self._shrinker.at(self.state, channels)

    def _shrink(self, shrinker: Shrinker, pruner: Pruner, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Continue with a smaller model if rank 0 decides that it saves enough. A collective."""
        saved = self.cluster.from_root(lambda: shrinker.next_channels(self.state, pruner))
        if saved is None:
            return
        if "refused" in saved:
            self.state.early_merge = saved
            return
        self._agree()
        before, start = shrinker.macs_fraction(self.state), time.perf_counter()
        channels = KeptChannels.from_json(pruner.graph, saved)
        batches = itertools.islice(self._training_batches(), self.config.shrink.num_calibration_batches)
        parts = (part for images, _ in batches for part in self._live.micro_batches(images))
        smaller = shrinker.shrink(self.state, channels, parts, self._validation_data)
        if smaller is self.state:
            return
        self._live.follow(smaller)
        # Models and graphs contain reference cycles, so Python would keep the larger ones in memory for a while.
        gc.collect()
        built = time.perf_counter()
        # Traced here, so that its time can be measured and is not part of the next step.
        self._live.step.trace(images, labels)
        figures = {
            "training_macs_fraction": shrinker.macs_fraction(self.state),
            "build_seconds": built - start,
            "tracing_seconds": time.perf_counter() - built,
        }
        shrinker.log(self.step, before, figures)
        self._hooks.on_shrink(self, figures)

    def _training_batches(self) -> Batches:
        """Return this rank's part of each batch, from the current step on."""
        return self._live.batches(self._train_data, self.config.data)

    def _save(self, is_last: bool = False) -> None:
        start = time.monotonic()
        self._agree()
        self._hooks.before_checkpoint(self)
        self.checkpoints.save(self.state, is_last=is_last, is_end=self.is_done())
        # At the end of a phase the checkpoint of the same step may be saved again, which writes nothing.
        if self.step != self._saved_step:
            self._saved_step = self.step
            self._hooks.on_checkpoint(self, time.monotonic() - start)

    def _agree(self) -> None:
        """Look at what came of the last step, and check that all ranks hold the same. A collective."""
        self._live.step.settle()
        self.state.agree(self.cluster)

    def _evaluate(self) -> None:
        self._agree()
        start, batch_size = time.monotonic(), self.config.data.evaluation_batch_size
        values = self._live.evaluate(self._validation_data, batch_size)
        self.validation_top1 = score_of(values).value
        self._best.consider(self.state, score_of(values), self.pruner)
        if self.cluster.size > 1:
            self.collective_seconds = self._live.step.collective_seconds()
        self._hooks.on_evaluation(self, values, time.monotonic() - start)

    def _read_metrics(self) -> dict[str, float]:
        return {**self._live.step.read_metrics(), "learning_rate": float(self._plan.schedule(self.step - 1))}
