"""What becomes of a phase's figures: its curves and pictures, and the values beside its progress bar."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from resrep_dist.config import Config
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph
from resrep_dist.monitoring.channel_history import HISTORY_FILE, ChannelHistory
from resrep_dist.monitoring.channel_images import CHANNELS_LEGEND, channel_picture, heat_map
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.monitoring.step_timer import StepTimer
from resrep_dist.pruning.pruner import Pruner


class Curves:
    """Takes the figures of one phase and gives them to its monitor; does nothing where that is silent."""

    def __init__(self, monitor: Monitor, config: Config, graph: Graph | None) -> None:
        if graph:
            check_heat_maps(config, graph)
        self._monitor, self._config = monitor, config.logging
        self._timer = StepTimer(config.data.global_batch_size)
        self._history = ChannelHistory()
        self._collective_seconds = 0.0

    def start(self, step: int, batches: Iterator[Any]) -> Iterator[Any]:
        """Begin where the run starts or resumes; returns the batches, clocked, and profiled where that is asked."""
        folder = self._monitor.folder
        self._timer.start(step)
        if folder is None:
            return self._timer.clocked(batches)
        self._history = ChannelHistory.load(folder, step)
        return self._timer.clocked(self._profiled(batches, step))

    def add_training(
        self, step: int, metrics: Mapping[str, float], learning_rate: float, pruner: Pruner | None
    ) -> None:
        """Points of a logging step, and the values beside the bar.

        Args:
            metrics: `loss`, `top1` (percent) and `skipped_steps` since the last call, over all ranks.
            pruner: where the phase prunes.
        """
        if self._monitor.is_silent:
            return
        times = self._timer.read(step)
        rest = times["time/step_seconds"] - times["time/data_seconds"] - self._collective_seconds
        scalars = times | {
            "train/loss": metrics["loss"],
            "train/top1": metrics["top1"],
            "train/learning_rate": learning_rate,
            "train/skipped_steps": metrics["skipped_steps"],
            "time/compute_seconds": max(0.0, rest),
        }
        line = short_line = f"loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.1f} %"
        if pruner:
            self.add_masks(step, pruner)
            curves, norms = pruner.curves()
            scalars |= curves
            self._monitor.histograms(step, norms)
            by_mask, living = curves["prune/macs_fraction_by_mask"], curves["prune/macs_fraction_living"]
            line += f"  multiply-adds {100 * by_mask:.1f} % by mask, {100 * living:.1f} % living"
            short_line += f"  macs {100 * living:.1f} %"
        self._monitor.scalars(step, scalars)
        speed = f"{times['train/images_per_second']:.0f} images/s"
        self._monitor.progress(step, f"{line}  {speed}", f"{short_line}  {speed}")

    def add_masks(self, step: int, pruner: Pruner) -> None:
        """Note which channels are masked and which are dead; called where masks change and where figures are logged."""
        if self._monitor.folder is not None:
            self._history.update(step, pruner.channel_states())
            self._monitor.text_file(HISTORY_FILE, self._history.to_json())

    def add_validation(self, step: int, values: Mapping[str, float], pruner: Pruner | None) -> None:
        """Points of an evaluation, and the pictures of the channels and of some compactors."""
        self._monitor.scalars(step, {f"validation/{name}": value for name, value in values.items()})
        if pruner is None or self._monitor.folder is None:
            return
        self.add_masks(step, pruner)
        self._monitor.picture(step, "channels", channel_picture(self._history), CHANNELS_LEGEND)
        for name in self._heat_maps(pruner):
            picture = heat_map(pruner.kernel(name))
            self._monitor.picture(step, f"compactor/{name}", picture, "Outputs down, inputs across.")

    def add_collective(self, step: int, seconds: float) -> None:
        """The time that the step's collective takes alone; from here on it counts as the step's communication."""
        self._collective_seconds = seconds
        self._monitor.scalars(step, {"time/collective_seconds": seconds})

    @contextlib.contextmanager
    def pause(self, name: str, step: int) -> Iterator[None]:
        """Time what is not part of a step: `checkpoint`, `evaluation` or `shrink`."""
        start = time.monotonic()
        yield
        self.add_pause(name, step, time.monotonic() - start)

    def add_write(self, step: int, seconds: float | None) -> None:
        """The time that the writing of the checkpoint before took, beside the training; none where there was none."""
        if seconds is not None:
            self._monitor.scalars(step, {"time/checkpoint_write_seconds": seconds})

    def add_pause(self, name: str, step: int, seconds: float) -> None:
        """The same, where the time is known already."""
        self._timer.pause(seconds)
        self._monitor.scalars(step, {f"time/{name}_seconds": seconds})

    def _profiled(self, batches: Iterator[Any], first_step: int) -> Iterator[Any]:
        """The same batches; TensorFlow's profiler runs in the steps that the configuration names."""
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


def check_heat_maps(config: Config, graph: Graph) -> None:
    """Refuse names of groups that do not exist, before anything is trained."""
    names = [group.name for group in graph.groups]
    for name in config.logging.compactor_heat_maps:
        if name not in names:
            raise ConfigError(
                f"logging.compactor_heat_maps: received {name}, expected groups of the model: {', '.join(names)}"
            )
