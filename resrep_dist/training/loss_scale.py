"""The dynamic loss scale of float16 training."""

import tensorflow as tf

_INITIAL = 2.0**15
_GROWTH_STEPS = 2000


class LossScale:
    """Dynamic loss scale: halved after each step that is not finite, doubled after 2000 finite steps, never below 1.

    All ranks find the same steps finite. So the scale stays the same on all ranks without a collective.
    """

    def __init__(self) -> None:
        self.value = tf.Variable(_INITIAL, trainable=False, dtype=tf.float32)
        self.num_good_steps = tf.Variable(0, trainable=False, dtype=tf.int64)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The state of the scale, by the names in a checkpoint."""
        return {"loss_scale": self.value, "loss_scale_good_steps": self.num_good_steps}

    def is_lowest(self) -> tf.Tensor:
        """Return True if the scale cannot be lowered any more, so that a step that is not finite has another cause.

        Returns:
            A scalar bool tensor.
        """
        return self.value <= 1.0

    def update(self, is_good: tf.Tensor) -> None:
        """Adapt the scale to the result of a step.

        Args:
            is_good: True if the step was finite on all ranks, a scalar bool tensor.
        """
        num_good_steps = tf.where(is_good, self.num_good_steps + 1, tf.zeros([], tf.int64))
        grows = num_good_steps >= _GROWTH_STEPS
        factor = tf.where(is_good, tf.where(grows, 2.0, 1.0), 0.5)
        # Without an upper limit the scale itself would become infinite.
        self.value.assign(tf.clip_by_value(self.value * factor, 1.0, 2.0**30))
        self.num_good_steps.assign(tf.where(grows, tf.zeros([], tf.int64), num_good_steps))
