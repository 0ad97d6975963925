"""One training step: forward, backward, one collective, update."""

from resrep_dist.cluster import Cluster
from resrep_dist.config import TrainingConfig
from resrep_dist.loss_scale import LossScale
from resrep_dist.losses import make_loss
from resrep_dist.optimizer import ResRepOptimizer
from resrep_dist.state import batch_norm_statistics

import tensorflow as tf
from tensorflow import keras

# Averaged gradients are sent as float16 times this: full precision from 6e-8 to 64.
_FLOAT16_FACTOR = 1024.0


class TrainStep:
    """The compiled step of one rank; its metrics stay on the device until they are read.

    A rank's part of the batch may be computed in several parts (gradient accumulation). Each is treated as a
    rank's part is: sums over samples, batch norm by its own statistics, from which the average moves the
    running ones once. So 1 rank with 4 parts and 4 ranks with one do the same.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: ResRepOptimizer,
        cluster: Cluster,
        config: TrainingConfig,
        global_batch_size: int,
    ) -> None:
        self._model, self._optimizer, self._cluster = model, optimizer, cluster
        self._config, self._global_batch_size = config, global_batch_size
        self._loss = make_loss(config, model)
        self._dtype = keras.backend.floatx()
        optimizer.build(model.trainable_variables)
        self._statistics = batch_norm_statistics(model)
        self._loss_scale = LossScale() if config.precision == "mixed_float16" else None
        self.variables = self._loss_scale.variables if self._loss_scale else {}
        # loss sum, correct, samples, skipped steps, skipped steps in a row
        self._totals = tf.Variable(tf.zeros([5], self._dtype), trainable=False)
        self._stop_requested = tf.Variable(0.0, trainable=False, dtype=self._dtype)
        self._num_stop_requests = tf.Variable(0.0, trainable=False, dtype=self._dtype)
        self._compute, self._apply = self._forward_and_backward, self._clip_and_apply
        if config.xla:
            # The collective stays outside: XLA cannot compile it.
            self._compute = tf.function(self._compute, jit_compile=True, reduce_retracing=True)
            self._apply = tf.function(self._apply, jit_compile=True)
        self.run = tf.function(self._run, reduce_retracing=True)

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call, over all ranks, and the counts of steps that were skipped."""
        loss, correct, count, skipped, in_a_row = (float(value) for value in self._totals.numpy())
        self._totals.assign([0.0, 0.0, 0.0, 0.0, in_a_row])
        count = max(count, 1.0)
        return {
            "loss": loss / count,
            "top1": 100.0 * correct / count,
            "skipped_steps": skipped,
            "skipped_steps_in_a_row": in_a_row,
        }

    def go_on_from(self, other: "TrainStep") -> None:
        """Go on with what another step has counted since its metrics were read."""
        self._totals.assign(other._totals)

    def request_stop(self) -> None:
        """Let the next step tell all ranks that this one was asked to stop."""
        self._stop_requested.assign(1.0)

    def is_stop_requested(self) -> bool:
        """True on every rank alike where one of them had asked for it before the last step."""
        return float(self._num_stop_requests) > 0

    def _run(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        # The forward pass changes the statistics; a step that is skipped must put them back.
        before = [tf.identity(statistic) for statistic in self._statistics]
        gradients, statistics, metrics = self._split(self._accumulate(images, labels, before))
        norms = self._optimizer.row_norms()
        weighted = [metrics[2] * norm for norm in norms]
        is_bad = 1.0 - tf.cast(_all_finite([metrics, *gradients]), self._dtype)
        rest = [*weighted, *statistics, tf.concat([metrics, [is_bad, self._stop_requested]], 0)]
        gradients, rest, is_finite = self._sum(gradients, rest)
        loss, correct, count, num_bad, num_stop_requests = tf.unstack(rest[-1])
        self._num_stop_requests.assign(num_stop_requests)
        gradients, rest = [value / count for value in gradients], [value / count for value in rest[:-1]]
        is_good = (num_bad == 0) & is_finite
        for statistic, new, old in zip(self._statistics, rest[len(norms) :], before, strict=True):
            statistic.assign(tf.where(is_good, new, old))
        if is_good:
            self._apply(gradients, rest[: len(norms)])
            self._totals.assign(self._totals * [1, 1, 1, 1, 0] + tf.stack([loss, correct, count, 0.0, 0.0]))
        else:
            # The schedule goes on with the data.
            self._optimizer.iterations.assign_add(1)
            # A step that only lowers the loss scale is no sign of trouble.
            is_trouble = tf.cast(self._loss_scale.is_lowest() if self._loss_scale else True, self._dtype)
            self._totals.assign_add(tf.stack([0.0, 0.0, 0.0, 1.0, is_trouble]))
        if self._loss_scale:
            self._loss_scale.update(is_good)

    def _accumulate(self, images: tf.Tensor, labels: tf.Tensor, before: list[tf.Tensor]) -> list[tf.Tensor]:
        num_parts, size = self._config.gradient_accumulation_steps, tf.shape(labels)[0]
        if num_parts == 1:
            return self._compute(images, labels)

        def add_part(part: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            start, end = size * part // num_parts, size * (part + 1) // num_parts
            for statistic, value in zip(self._statistics, before, strict=True):
                statistic.assign(value)
            values = self._compute(images[start:end], labels[start:end])
            return part + 1, [total + value for total, value in zip(sums, values, strict=True)]

        variables = [*self._model.trainable_variables, *self._statistics]
        zeros = [*(tf.zeros(variable.shape, variable.dtype) for variable in variables), tf.zeros([3], self._dtype)]
        # One part at a time: two at once would need the memory that the parts are to save.
        _, sums = tf.while_loop(lambda part, _: part < num_parts, add_part, [0, zeros], parallel_iterations=1)
        return sums

    def _forward_and_backward(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        """Sums over the samples: gradients, statistics, and [loss, correct, number of samples]."""
        count = tf.cast(tf.shape(labels)[0], self._dtype)
        # 16 bits see the mean over the samples, whose size does not depend on their number.
        scale = tf.cast(self._loss_scale.value, self._dtype) / count if self._loss_scale else None
        with tf.GradientTape() as tape:
            outputs = tf.cast(self._model(images, training=True), self._dtype)
            loss = tf.reduce_sum(tf.cast(self._loss(labels, outputs), self._dtype))
            # Sums over samples, divided by the global count after the sum: parts may differ in size.
            objective = loss + count * sum(self._model.losses)
            scaled = objective if scale is None else objective * scale
        gradients = tape.gradient(
            scaled, self._model.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
        correct = tf.reduce_sum(tf.cast(tf.argmax(outputs, -1, labels.dtype) == labels, self._dtype))
        statistics = [count * statistic for statistic in self._statistics]
        return [*gradients, *statistics, tf.stack([loss, correct, count])]

    def _split(self, values: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
        num_weights = len(self._model.trainable_variables)
        return values[:num_weights], values[num_weights:-1], values[-1]

    def _sum(
        self, gradients: list[tf.Tensor], rest: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
        """Sum over the ranks in one group, or in two where gradients travel as float16: a group has one type."""
        if self._config.compression == "none" or self._cluster.size == 1:
            summed = self._cluster.sum([*gradients, *rest], "step")
            return summed[: len(gradients)], summed[len(gradients) :], tf.constant(True)
        factor = _FLOAT16_FACTOR / self._global_batch_size
        packed = [tf.cast(gradient * factor, tf.float16) for gradient in gradients]
        received = self._cluster.sum(packed, "step_gradients")
        unpacked = [tf.cast(p, g.dtype) / factor for p, g in zip(received, gradients, strict=True)]
        # Finite gradients may be too large for float16; the sums are the same on all ranks, so is the answer.
        return unpacked, self._cluster.sum(rest, "step"), _all_finite(unpacked)

    def _clip_and_apply(self, gradients: list[tf.Tensor], norms: list[tf.Tensor]) -> None:
        if self._config.gradient_clip_norm is not None:
            # The averaged gradients of the objective; the optimizer adds decay and penalty afterwards.
            gradients, _ = tf.clip_by_global_norm(gradients, self._config.gradient_clip_norm)
        pairs = zip(gradients, self._model.trainable_variables, strict=True)
        self._optimizer.apply_gradients(pairs, norms=norms)


def _all_finite(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
