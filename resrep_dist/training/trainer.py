"""The story of one training phase: resume, step, masks, curves, checkpoints, end."""

import gc
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.writer import Checkpointing
from resrep_dist.config import Config
from resrep_dist.data.order import training_batches
from resrep_dist.data.sample_log import recorded
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.stopping import StopRequest
from resrep_dist.errors import StoppedError
from resrep_dist.graph import Graph
from resrep_dist.graph.layout import Layout
from resrep_dist.monitoring.curves import Curves
from resrep_dist.monitoring.dashboard import write_head
from resrep_dist.monitoring.health import Health
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.pruning.targets import require_prunable
from resrep_dist.shrinking.shrinker import Shrinker
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import check_data, model_for_training, plan_phase, pruning_of

import tensorflow as tf
from rich.console import Console
from tensorflow import keras

_log = logging.getLogger(__name__)


class Trainer:
    """Train a model on the ranks of a cluster; with a graph, prune it meanwhile.

    Args:
        model: a functional Keras model. What is trained is `trainer.model`: a copy with compactors in it, in the
            precision that the configuration asks for; the model itself where it is already like that.
        graph: what `trace(model)` found; without one this is plain training.
        config: the run's configuration. The phase is `train`, or, without a graph where there is a section `prune`,
            `base`.
        cluster: the ranks; by default those that the launcher started.
        workdir: where checkpoints and curves go, those of the base model into its folder `base`; without one
            nothing is written.
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
        workdir: Path | None = None,
        console: Console | None = None,
    ) -> None:
        self.cluster = cluster or Cluster()
        self.config, self.graph = config, graph
        self._train_data, self._validation_data = train_data, validation_data
        check_data(config, train_data, self.cluster.size)
        if graph:
            require_prunable(model, graph)
        self._plan = plan_phase(config, graph, len(train_data))
        self.num_steps, self._schedule = self._plan.num_steps, self._plan.schedule
        self._shrinker = Shrinker(graph, config, self._plan, self.cluster) if graph else None
        self.state: dict[str, tf.Variable] = {}
        model = model_for_training(model, graph, config, self.cluster)
        self._take(LiveModel(model, graph, config, self._plan, self.cluster))
        if self.pruner:
            self.pruner.warn_of_slow_pace()
        self._workdir = workdir
        self.step = 0
        self.validation_top1: float | None = None
        self._batches: Iterator[Any] = iter(())
        title = "prune" if graph else "base" if config.prune else "train"
        self._folder = workdir / "base" if workdir and title == "base" else workdir
        checkpoints = self._folder / "checkpoints" if self._folder else None
        self.checkpointing = Checkpointing(checkpoints, config.checkpoint.num_kept, self.state, self.cluster)
        is_seen = self.cluster.is_root and self._folder is not None
        curves = self._folder / "tensorboard" if self._folder and is_seen else None
        self._monitor = Monitor(title, curves, console if is_seen else None, self.num_steps)
        self._curves = Curves(self._monitor, config, graph)
        self._health = Health(config)

    def run(self, stop: StopRequest | None = None) -> None:
        """Resume where the workdir stands, train to the end, leave the last checkpoint behind.

        Args:
            stop: what asks this rank to stop, if that is known before; otherwise signals and a file `stop` in
                the workdir.
        """
        if stop is None:
            with StopRequest(self._workdir if self.cluster.is_root else None) as own:
                return self.run(own)
        self.start()
        with self.cluster.watchdog.watching(self.config.faults):
            try:
                while not self.is_done():
                    self._stop_where_asked(stop)
                    self.train_until(self.step + 1)
                self._save(is_last=True)
            finally:
                # Watched too, with patience: a disk that hangs would keep a run that failed from ending.
                with self.cluster.watchdog.patient():
                    self.checkpointing.wait()
                self._monitor.close()

    def _stop_where_asked(self, stop: StopRequest) -> None:
        """Leave with a checkpoint if any rank was asked to, all ranks at the same step."""
        if self._step.is_stop_requested():
            self._save(is_last=True)
            raise StoppedError(
                f"stopped at step {self.step} as asked, the checkpoint is written; start the same command again to "
                "go on from there"
            )
        if stop.is_set():
            self._step.request_stop()

    def start(self) -> None:
        """Restore the newest checkpoint on rank 0 and give all ranks its state; a collective."""
        whole = self._live
        position = self.checkpointing.restore(lambda position: self._lay_out(whole, position))
        self._lay_out(whole, position)
        self.step = position["step"]
        if self.pruner:
            self.pruner.num_chosen = position["num_chosen"]
        self.cluster.broadcast(list(self.state.values()))
        if self.step:
            _log.info("Resumed at step %d.", self.step)
        row = str(self._workdir.resolve()) if self._workdir and self._folder == self._workdir else None
        is_resumed, cluster = self.step > 0, self.cluster.description
        self._monitor.start(self.step, lambda: write_head(self.config, row, cluster, is_resumed))
        self._batches = self._curves.start(self.step, self._make_batches())

    def train_until(self, step: int) -> None:
        """Train up to and including the given step, or to the end if it comes before."""
        for images, labels in itertools.islice(self._batches, max(0, step - self.step)):
            self.cluster.watchdog.beat(self.step + 1)
            self._step.run(images, labels)
            self.step += 1
            if self.pruner and self.pruner.is_due(self.step):
                self.agree()
                self.pruner.update()
                self._curves.add_masks(self.step, self.pruner)
            if self._shrinker and self._shrinker.is_due(self.step):
                with self.cluster.watchdog.patient():
                    self._shrink(self._shrinker, images, labels)
            if self.step % self.config.logging.interval_steps == 0:
                self._report()
            if self._is_evaluation_due() or self.is_done():
                self._evaluate()
            if self.step % self.config.checkpoint.interval_steps == 0:
                with self._curves.pause("checkpoint", self.step):
                    self._save()
                self._curves.add_write(self.step, self.checkpointing.write_seconds)
            if self.step >= self.num_steps and self.is_done():
                break

    def is_done(self) -> bool:
        """True at the end: all steps made, and every masked row dead or the extension spent."""
        if self.step < self.num_steps:
            return False
        if self.step >= self._plan.max_steps or self.pruner is None:
            return True
        is_looked_at = (self.step - self.num_steps) % pruning_of(self.config).mask_interval_steps == 0
        return is_looked_at and self.pruner.num_masked_alive() == 0

    def agree(self) -> None:
        """Compare the state in force over the ranks; a collective that raises a DisagreementError on all."""
        if self.cluster.size > 1:
            self.cluster.agree(self._digest.names, self._digest())

    def _take(self, live: LiveModel) -> None:
        """Train this model from now on."""
        self._live = live
        self.model, self.optimizer, self.pruner = live.model, live.optimizer, live.pruner
        self._step, self._evaluator, self._digest = live.step, live.evaluator, live.digest
        # The same mapping: what saves the state holds it.
        self.state.clear()
        self.state.update(live.state)

    def _lay_out(self, whole: LiveModel, position: dict[str, Any]) -> None:
        """Take the whole model at the widths at which the run stood."""
        if self._shrinker and self.graph:
            layout = Layout.of(self.graph, position.get("layout"))
            if layout != self._shrinker.layout:
                self._take(self._shrinker.rebuild(whole, layout))

    def _shrink(self, shrinker: Shrinker, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Train a smaller model from now on if rank 0 finds it worth while; a collective."""
        layout = self.cluster.from_root(lambda: shrinker.next_layout(self._live))
        if layout is None or self.graph is None:
            return
        self.agree()
        before, start = shrinker.macs_fraction(self._live), time.perf_counter()
        batches = itertools.islice(self._training_batches(), self.config.shrink.num_calibration_batches)
        self._take(shrinker.shrink(self._live, Layout.of(self.graph, layout), (images for images, _ in batches)))
        # Models and graphs refer to themselves, and Python would keep the larger ones for a while.
        gc.collect()
        built = time.perf_counter()
        # Now, where its time can be told, not in the middle of the next step.
        self._step.trace(images, labels)
        figures = {
            "training_macs_fraction": shrinker.macs_fraction(self._live),
            "build_seconds": built - start,
            "tracing_seconds": time.perf_counter() - built,
        }
        self._monitor.scalars(self.step, {f"shrink/{name}": value for name, value in figures.items()})
        self._curves.add_pause("shrink", self.step, time.perf_counter() - start)
        _log.info(
            "Step %d: the model shrinks from %.1f %% to %.1f %% of the base's multiply-adds, compactors counted "
            "(built in %.1f s, traced in %.1f s).",
            self.step,
            100 * before,
            100 * figures["training_macs_fraction"],
            figures["build_seconds"],
            figures["tracing_seconds"],
        )

    def _training_batches(self) -> Any:
        rank, size = self.cluster.rank, self.cluster.size
        return training_batches(
            self._train_data,
            global_batch_size=self.config.data.global_batch_size,
            augmentation=self.config.data.augmentation,
            # The phases see different orders.
            seed=2 * self.config.seed + (self.graph is not None),
            rank=rank,
            num_ranks=size,
            first_step=self.step,
        )

    def _make_batches(self) -> Iterator[Any]:
        rank, size, batches = self.cluster.rank, self.cluster.size, self._training_batches()
        if self.config.logging.record_samples and self._folder:
            path = self._folder / "samples" / f"from-step-{self.step:08d}-rank-{rank}-of-{size}.csv"
            return recorded(batches, path, self.step)
        return iter(batches)

    def _save(self, is_last: bool = False) -> None:
        self.agree()
        # Whoever resumes there finds the curves up to there.
        self._monitor.flush()
        position = {
            "num_chosen": self.pruner.num_chosen if self.pruner else 0,
            "layout": self._shrinker.saved_layout() if self._shrinker else None,
            "config": self.config.to_dict(),
        }
        self.checkpointing.save(self.step, position, is_last=is_last)

    def _is_evaluation_due(self) -> bool:
        interval = self.config.logging.evaluation_epochs * self._plan.steps_per_epoch
        return int(self.step / interval) > int((self.step - 1) / interval)

    def _evaluate(self) -> None:
        self.agree()
        batch_size = self.config.data.evaluation_batch_size
        with self._curves.pause("evaluation", self.step):
            values = self._evaluator.evaluate(self._validation_data, batch_size, self.cluster)
            self.validation_top1 = values["top1"]
            self._curves.add_validation(self.step, values, self.pruner)
            if self.cluster.size > 1:
                self._curves.add_collective(self.step, self._step.collective_seconds())

    def _report(self) -> None:
        metrics = self._step.read_metrics()
        self._curves.add_training(self.step, metrics, float(self._schedule(self.step - 1)), self.pruner)
        if self.cluster.is_root:
            self._health.see(self.step, metrics["loss"], self.pruner)
