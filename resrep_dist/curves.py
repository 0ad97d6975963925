"""What becomes of a phase's figures: the points of its curves and the values beside its progress bar."""

import time
from collections.abc import Mapping

from resrep_dist.monitor import Monitor
from resrep_dist.pruner import Pruner


class Curves:
    """Takes the figures of one phase and gives them to its monitor; does nothing where that is silent."""

    def __init__(self, monitor: Monitor, global_batch_size: int) -> None:
        self._monitor, self._global_batch_size = monitor, global_batch_size
        self._last_time, self._last_step = time.monotonic(), 0

    def start(self, step: int) -> None:
        """Measure speed from here."""
        self._last_time, self._last_step = time.monotonic(), step

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
        speed = self._images_per_second(step)
        scalars = {
            "train/loss": metrics["loss"],
            "train/top1": metrics["top1"],
            "train/learning_rate": learning_rate,
            "train/images_per_second": speed,
            "train/skipped_steps": metrics["skipped_steps"],
        }
        line = f"loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.1f} %"
        if pruner:
            curves, norms = pruner.curves()
            scalars |= curves
            self._monitor.histograms(step, norms)
            by_mask, living = curves["prune/macs_fraction_by_mask"], curves["prune/macs_fraction_living"]
            line += f"  multiply-adds {100 * by_mask:.1f} % by mask, {100 * living:.1f} % living"
        self._monitor.scalars(step, scalars)
        self._monitor.progress(step, f"{line}  {speed:.0f} images/s")

    def add_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Points of an evaluation."""
        self._monitor.scalars(step, {f"validation/{name}": value for name, value in values.items()})

    def _images_per_second(self, step: int) -> float:
        """Throughput over all ranks since the last call."""
        now = time.monotonic()
        rate = (step - self._last_step) * self._global_batch_size / max(now - self._last_time, 1e-9)
        self._last_time, self._last_step = now, step
        return rate
