"""Learning-rate schedules: a warm-up, then a cosine or milestones, then the extension."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.config import PhaseConfig

import tensorflow as tf
from tensorflow import keras


@keras.utils.register_keras_serializable("resrep_dist")
class PhaseSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a cosine to zero, or milestones at which the rate is multiplied by a factor.

    The extension after the last step is another cosine, which begins at a tenth of the peak.

    Args:
        peak: Learning rate at the end of the warm-up.
        num_steps: Number of steps without the extension.
        warmup_steps: Number of steps of the warm-up.
        extension_steps: Number of steps of the extension.
        milestone_steps: Steps at which the rate is multiplied by `milestone_factor`; empty for a cosine.
        milestone_factor: The factor.
    """

    def __init__(
        self,
        peak: float,
        num_steps: int,
        warmup_steps: int = 0,
        extension_steps: int = 0,
        *,
        milestone_steps: Sequence[int] = (),
        milestone_factor: float = 0.1,
    ) -> None:
        self.peak, self.num_steps = peak, num_steps
        self.warmup_steps, self.extension_steps = warmup_steps, extension_steps
        self.milestone_steps, self.milestone_factor = list(milestone_steps), milestone_factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the learning rate of a step.

        Args:
            step: Number of the step, counted from 0; a tensor of any shape.

        Returns:
            A tensor of the same shape.
        """
        step = tf.cast(step, tf.float64)
        warmup = (step + 1.0) / max(self.warmup_steps, 1)
        extension = (step - self.num_steps) / max(self.extension_steps, 1)
        factor = tf.where(
            step < self.warmup_steps, warmup, self._steps(step) if self.milestone_steps else self._cosine(step)
        )
        factor = tf.where(step >= self.num_steps, 0.1 * _half_cosine(extension), factor)
        return tf.cast(self.peak * factor, keras.backend.floatx())

    def _cosine(self, step: tf.Tensor) -> tf.Tensor:
        return _half_cosine((step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1))

    def _steps(self, step: tf.Tensor) -> tf.Tensor:
        is_passed = step[..., tf.newaxis] >= tf.constant(self.milestone_steps, step.dtype)
        return self.milestone_factor ** tf.reduce_sum(tf.cast(is_passed, step.dtype), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the settings from which Keras builds the schedule again."""
        return dict(vars(self))


def phase_schedule(phase: PhaseConfig, global_batch_size: int, num_steps: int, extension_steps: int) -> PhaseSchedule:
    """Create the schedule of a phase.

    The learning rate is scaled by the global batch size relative to `reference_batch_size`, if that is set. It never
    depends on the number of ranks.

    Args:
        phase: Learning rate, warm-up and milestones.
        global_batch_size: Number of samples per step, over all ranks.
        num_steps: Number of steps of the phase.
        extension_steps: Number of steps of its extension.
    """
    scale = global_batch_size / (phase.reference_batch_size or global_batch_size)
    steps_per_epoch = num_steps / phase.num_epochs
    return PhaseSchedule(
        phase.learning_rate * scale,
        num_steps,
        round(steps_per_epoch * phase.warmup_epochs),
        extension_steps,
        milestone_steps=[round(steps_per_epoch * epochs) for epochs in phase.milestone_epochs],
        milestone_factor=phase.milestone_factor,
    )


def _half_cosine(progress: tf.Tensor) -> tf.Tensor:
    return 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
