"""Turns the figures of a phase into curves, images, and the values beside its progress bar."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from resrep_dist.config import LoggingConfig
from resrep_dist.config.tasks import SCORE_NAMES, TASKS, named_scores
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph
from resrep_dist.monitoring.channel_history import HISTORY_FILE, ChannelHistory
from resrep_dist.monitoring.channel_images import CHANNELS_LEGEND, channel_picture, heat_map
from resrep_dist.monitoring.dashboard import write_head
from resrep_dist.monitoring.hooks import Hook, Watched
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.monitoring.step_timer import DataWait, StepTimer
from resrep_dist.pruning.pruner import Pruner


class Curves(Hook):
    """Passes the figures of one phase to its monitor; does nothing if the monitor is silent.

    Args:
        monitor: Writes curves and shows progress.
        config: Intervals, heat maps and the profile.
        global_batch_size: Number of samples per step, over all ranks.
        sweep_row: Name of the run in TensorBoard's table of a sweep; None for base training, which has no row.
        graph: What the phase prunes; None for training without pruning.
    """

    def __init__(
        self,
        monitor: Monitor,
        config: LoggingConfig,
        global_batch_size: int,
        sweep_row: str | None = None,
        graph: Graph | None = None,
    ) -> None:
        self._monitor, self._config, self._sweep_row, self._graph = monitor, config, sweep_row, graph
        self._timer, self._data_wait = StepTimer(global_batch_size), DataWait()
        self._history = ChannelHistory()
        self._collective_seconds = 0.0
        self._first_step, self._start_time = 0, time.monotonic()

    def on_start(self, trainer: Watched) -> None:
        """Open the curves at the step at which the run starts or resumes."""
        config, cluster, is_resumed = trainer.config, trainer.cluster.description, trainer.step > 0
        self._monitor.start(trainer.step, lambda: write_head(config, self._sweep_row, cluster, is_resumed))
        interval_steps = self._config.interval_steps
        self._monitor.say(trainer.step, f"starts; the first step is compiled, then a line every {interval_steps} steps")
        self._first_step = trainer.step + 1
        if self._monitor.folder is not None:
            self._history = ChannelHistory.load(self._monitor.folder, trainer.step)

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterable[Any]:
        """Measure the time to load each batch, and run the profiler if it is configured.

        Args:
            trainer: The run.
            batches: The batches that this rank trains on.

        Returns:
            The same batches.
        """
        self._timer.start(trainer.step)
        self._start_time = time.monotonic()
        if self._monitor.folder is not None:
            batches = self._profiled(batches, trainer.step)
        return self._timer.clocked(batches)

    def on_step(self, trainer: Watched, metrics: Mapping[str, float] | None) -> None:
        """Record the masks if they changed, and add points at logging steps."""
        if trainer.step == self._first_step:
            self._monitor.say(trainer.step, f"the first step took {time.monotonic() - self._start_time:.1f} s")
        if trainer.pruner and trainer.pruner.is_due(trainer.step):
            self.add_masks(trainer.step, trainer.pruner)
        if metrics is not None:
            self.add_training(trainer.step, metrics, trainer.pruner)
            self._add_what_is_left(trainer)

    def on_evaluation(self, trainer: Watched, values: Mapping[str, float], seconds: float) -> None:
        """Add the points and the images of an evaluation. Drawing them is part of its time, not of a step's."""
        start = time.monotonic()
        self.add_validation(trainer.step, values, trainer.pruner)
        self._monitor.say(trainer.step, f"validation {'  '.join(named_scores(values))}  ({seconds:.1f} s)")
        seconds += time.monotonic() - start
        # Until the next evaluation this is taken as the time that a step spends on communication.
        if trainer.collective_seconds is not None:
            self._collective_seconds = trainer.collective_seconds
            self._monitor.scalars(trainer.step, {"time/collective_seconds": self._collective_seconds})
        self._add_pause("evaluation", trainer.step, seconds)

    def before_checkpoint(self, trainer: Watched) -> None:
        """Write the curves to disk, so that a run that resumes from this checkpoint finds them."""
        self._monitor.flush()

    def on_checkpoint(self, trainer: Watched, seconds: float) -> None:
        """Add the time that training stood still, and the time to write the last checkpoint that is complete."""
        self._add_pause("checkpoint", trainer.step, seconds)
        if trainer.checkpoint_write_seconds is not None:
            written = {"time/checkpoint_write_seconds": trainer.checkpoint_write_seconds}
            self._monitor.scalars(trainer.step, written)

    def on_shrink(self, trainer: Watched, figures: Mapping[str, float]) -> None:
        """Add the time that a shrink took, and the multiply-adds that remain."""
        self._monitor.scalars(trainer.step, {f"shrink/{name}": value for name, value in figures.items()})
        self._add_pause("shrink", trainer.step, figures["build_seconds"] + figures["tracing_seconds"])
        if trainer.state.channels and trainer.state.channels.is_merged:
            # The last rows have died since their masks were recorded.
            self._history.end(trainer.step)
            self._write_history()
            self._add_what_is_left(trainer)

    def on_end(self, trainer: Watched) -> None:
        """Close the curves, the profile and the progress bar."""
        self._monitor.finish(trainer.step)
        self._monitor.close()

    def add_training(self, step: int, metrics: Mapping[str, float], pruner: Pruner | None) -> None:
        """Add the points of a logging step, and update the values beside the progress bar.

        Args:
            step: Number of steps made.
            metrics: See `Hook.on_step`.
            pruner: Chooses the masks; None in a phase that does not prune.
        """
        if self._monitor.is_silent:
            return
        times = self._timer.read(step)
        self._data_wait.see(step, times)
        rest = times["time/step_seconds"] - times["time/data_seconds"] - self._collective_seconds
        key = next(task.training_score for task in TASKS.values() if task.training_score in metrics)
        scalars = times | {
            "train/loss": metrics["loss"],
            f"train/{key}": metrics[key],
            "train/learning_rate": metrics["learning_rate"],
            "train/skipped_steps": metrics["skipped_steps"],
            "time/compute_seconds": max(0.0, rest),
        }
        line = f"loss {metrics['loss']:.3f}  training {SCORE_NAMES[key]} {metrics[key]:.1f} %"
        short_line = f"loss {metrics['loss']:.3f}  train {SCORE_NAMES[key]} {metrics[key]:.1f} %"
        if pruner:
            self.add_masks(step, pruner)
            curves, norms = pruner.curves()
            scalars |= curves
            self._monitor.histograms(step, norms)
            by_mask, living = curves["prune/macs_fraction_by_mask"], curves["prune/macs_fraction_living"]
            line += f"  multiply-adds {100 * by_mask:.1f} % by mask, {100 * living:.1f} % living"
            short_line += f"  macs {100 * living:.1f} %"
            if (kind := pruner.goal.kind) != "macs":
                by_mask, living = (curves[f"prune/{kind}_fraction_{of}"] for of in ("by_mask", "living"))
                line += f"  {pruner.goal.cost.noun} {100 * by_mask:.1f} % by mask, {100 * living:.1f} % living"
                short_line += f"  {kind} {100 * living:.1f} %"
        self._monitor.scalars(step, scalars)
        speed = f"{times['train/images_per_second']:.0f} images/s"
        self._monitor.progress(step, f"{line}  {speed}", f"{short_line}  {speed}")

    def add_masks(self, step: int, pruner: Pruner) -> None:
        """Record which channels are masked and which are dead. Called after mask updates and at logging steps.

        Args:
            step: Number of steps made.
            pruner: Chooses the masks.
        """
        if self._monitor.folder is not None:
            self._history.update(step, pruner.channel_states())
            self._write_history()

    def add_validation(self, step: int, values: Mapping[str, float], pruner: Pruner | None) -> None:
        """Add the points of an evaluation, and images of the channels and of some compactors.

        Args:
            step: Number of steps made.
            values: See `Hook.on_evaluation`.
            pruner: Chooses the masks; None in a phase that does not prune.
        """
        self._monitor.scalars(step, {f"validation/{name}": value for name, value in values.items()})
        if pruner is None or self._monitor.folder is None:
            return
        self.add_masks(step, pruner)
        self._monitor.picture(step, "channels", channel_picture(self._history), CHANNELS_LEGEND)
        for name in self._heat_maps(pruner):
            picture = heat_map(pruner.kernel(name))
            self._monitor.picture(step, f"compactor/{name}", picture, "Outputs down, inputs across.")

    def _write_history(self) -> None:
        self._monitor.text_file(HISTORY_FILE, self._history.to_json())

    def _add_what_is_left(self, trainer: Watched) -> None:
        """Add the multiply-adds of a model that was merged in training: it has no masks any more that tell them."""
        channels, graph = trainer.state.channels, self._graph
        if graph and channels and channels.is_merged:
            fraction = graph.macs.total(channels.widths) / graph.macs.total(graph.widths)
            names = "prune/macs_fraction_by_mask", "prune/macs_fraction_living"
            self._monitor.scalars(trainer.step, dict.fromkeys(names, fraction))

    def _add_pause(self, name: str, step: int, seconds: float) -> None:
        """Add time that is not part of a step."""
        self._timer.pause(seconds)
        self._monitor.scalars(step, {f"time/{name}_seconds": seconds})

    def _profiled(self, batches: Iterable[Any], first_step: int) -> Iterator[Any]:
        """Return the same batches; TensorFlow's profiler runs in the configured steps."""
        start = max(self._config.profile_start_step, first_step)
        end = self._config.profile_start_step + self._config.profile_num_steps
        for step, batch in enumerate(batches, first_step):
            if step == start < end:
                self._monitor.start_profile()
            if step == end:
                self._monitor.stop_profile()
            yield batch

    def _heat_maps(self, pruner: Pruner) -> list[str]:
        names = [group.name for group in pruner.graph.groups]
        if not self._config.compactor_heat_maps:
            return list(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))
        return list(self._config.compactor_heat_maps)


def check_heat_maps(config: LoggingConfig, graph: Graph) -> None:
    """Check the groups of the configured heat maps, before anything is trained.

    Args:
        config: Names of the groups.
        graph: Trace of the original model.

    Raises:
        ConfigError: If a group does not exist.
    """
    names = [group.name for group in graph.groups]
    for name in config.compactor_heat_maps:
        if name not in names:
            raise ConfigError(
                f"logging.compactor_heat_maps: received {name}, expected groups of the model: {', '.join(names)}"
            )
