"""One training step: forward, backward, one collective, update."""

import logging
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from resrep_dist.checkpoints.digest import Digest
from resrep_dist.checkpoints.state import TrainState, batch_norm_statistics, plain_name
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import NonFiniteError
from resrep_dist.training.fingerprint import NUM_FINGERPRINT_VALUES, differ, fingerprint
from resrep_dist.training.loss_scale import LossScale
from resrep_dist.training.losses import make_loss

import numpy as np
import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)
MAX_SKIPPED_STEPS_IN_A_ROW = 10
# What a step may come to, on all ranks alike. A step that only lowers the loss scale is no sign of trouble.
_GOOD, _RESCALED, _NOT_FINITE, _DRIFTED = range(4)
# Averaged gradients are sent as float16 times this: full precision from 6e-8 to 64.
_FLOAT16_FACTOR = 1024.0


class _RankSums(NamedTuple):
    """Sums over the samples of this rank."""

    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    """Batch-norm statistics times the number of samples."""
    counts: tf.Tensor
    """[loss, number of correct samples, number of samples]"""


class _ClusterSums(NamedTuple):
    """Sums over all ranks."""

    gradients: list[tf.Tensor]
    rest: list[tf.Tensor]
    fits: tf.Tensor
    """True if no gradient was too large for the type in which it travelled."""


class _Outcome(NamedTuple):
    """What a step came to, alike on all ranks but for `is_finite`."""

    kind: tf.Tensor
    num_stop_requests: tf.Tensor
    """Number of ranks that were asked to stop."""
    is_finite: tf.Tensor
    """For each of the step's names, bool: its value on this rank."""


class TrainStep:
    """The compiled step of one rank; its metrics stay on the device until they are read.

    A rank's part of the batch may be computed in several micro-batches (gradient accumulation). Each is treated as a
    rank's part is: sums over samples, batch norm by its own statistics, from which the average moves the
    running ones once. So 1 rank with 4 micro-batches and 4 ranks with one each do the same.

    Attributes:
        variables: what a checkpoint holds of the step itself, the loss scale; part of every state that it follows.
    """

    def __init__(self, cluster: Cluster, config: TrainingConfig, global_batch_size: int) -> None:
        self._cluster, self._config, self._global_batch_size = cluster, config, global_batch_size
        self._dtype = keras.backend.floatx()
        self._loss_scale = LossScale() if config.precision == "mixed_float16" else None
        self.variables = self._loss_scale.variables if self._loss_scale else {}
        self._num_skipped_in_a_row = 0
        # loss sum, correct, samples, skipped steps
        self._totals = tf.Variable(tf.zeros([4], self._dtype), trainable=False)
        self._stop_requested = tf.Variable(0.0, trainable=False, dtype=self._dtype)
        self._num_stop_requests = 0.0

    def follow(self, state: TrainState) -> None:
        """Train this state from now on; what was counted since the metrics were read goes on."""
        self._state, self._model, self._optimizer = state, state.model, state.optimizer
        self._loss = make_loss(self._config, state.model)
        self._statistics = batch_norm_statistics(state.model)
        weights = [f"the gradient of {plain_name(variable)}" for variable in state.model.trainable_variables]
        self._names = ["the loss", *weights, *map(plain_name, self._statistics)]
        # Compared in every step: they decide what dies, and statistics are averaged, so that nobody could tell later.
        self._watched = [variable for c in self._optimizer.compactors for variable in (c.kernel, c.mask)]
        self._compute, self._apply = self._forward_and_backward, self._clip_and_apply
        if self._config.xla:
            # The collective stays outside: XLA cannot compile it.
            self._compute = tf.function(self._compute, jit_compile=True, reduce_retracing=True)
            self._apply = tf.function(self._apply, jit_compile=True)
        self._compiled = tf.function(self._run, reduce_retracing=True)
        self._collective_alone: Any = None

    def run(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Make one step; a collective. Only if something is wrong there is another one, to find out where.

        Args:
            images: this rank's part of the batch, [B, height, width, channels].
            labels: int64 [B].

        Raises:
            NonFiniteError: on every rank, when too many steps in a row had to be skipped.
            DisagreementError: on every rank, when their compactors, masks or batch-norm statistics differ.
        """
        outcome = self._compiled(images, labels)
        kind, self._num_stop_requests = int(outcome.kind), float(outcome.num_stop_requests)
        if kind == _GOOD:
            self._num_skipped_in_a_row = 0
        elif kind == _NOT_FINITE:
            self._explain_skipped(outcome.is_finite.numpy())
        elif kind == _DRIFTED:
            digests = Digest({plain_name(variable): variable for variable in [*self._watched, *self._statistics]})
            self._cluster.agree(digests.names, digests())
        self._state.step += 1

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call, over all ranks, and the counts of steps that were skipped."""
        loss, correct, count, skipped = (float(value) for value in self._totals.numpy())
        self._totals.assign(tf.zeros_like(self._totals))
        count = max(count, 1.0)
        return {
            "loss": loss / count,
            "top1": 100.0 * correct / count,
            "skipped_steps": skipped,
            "skipped_steps_in_a_row": float(self._num_skipped_in_a_row),
        }

    def trace(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Trace the step for batches like this one now, so that the first step does not have to."""
        self._compiled.get_concrete_function(images, labels)

    def collective_seconds(self) -> float:
        """Time of the step's collective by itself, without the wait for slower ranks; a collective."""
        if self._collective_alone is None:
            # Not compiled before somebody asks.
            self._collective_alone = tf.function(self._sum_alone)
        values = [*self._model.trainable_variables, *self._optimizer.row_norms(), *self._statistics]
        # Given from outside: TensorFlow may compute at once what is constant inside a function.
        zeros = [tf.zeros(value.shape, value.dtype) for value in values]
        zeros += [tf.zeros([NUM_FINGERPRINT_VALUES], self._dtype), tf.zeros([5], self._dtype)]
        seconds = []
        # The first one brings the ranks together.
        for _ in range(4):
            start = time.perf_counter()
            self._collective_alone(zeros).numpy()
            seconds.append(time.perf_counter() - start)
        return median(seconds[1:])

    def _sum_alone(self, values: list[tf.Tensor]) -> tf.Tensor:
        num_weights = len(self._model.trainable_variables)
        summed = self._sum(values[:num_weights], values[num_weights:])
        # All of a group is there when one of it is.
        return tf.reshape(summed.gradients[0], [-1])[0] + summed.rest[-1][0]

    def request_stop(self) -> None:
        """Let the next step tell all ranks that this one was asked to stop."""
        self._stop_requested.assign(1.0)

    def is_stop_requested(self) -> bool:
        """True on every rank alike if one of them had asked for it before the last step."""
        return self._num_stop_requests > 0

    def _explain_skipped(self, is_finite: np.ndarray) -> None:
        self._num_skipped_in_a_row += 1
        found = []
        for rank, row in enumerate(self._cluster.gather(is_finite.astype(np.uint8))):
            names = [name for name, is_fine in zip(self._names, row, strict=True) if not is_fine]
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                found.append(f"rank {rank}: {', '.join(names[:3])}{more}")
        where = "; ".join(found) or "a gradient of all ranks together is too large for float16"
        step, in_a_row = self._state.step + 1, self._num_skipped_in_a_row
        _log.warning("Step %d is skipped by all ranks, %d in a row. Not finite: %s.", step, in_a_row, where)
        if in_a_row >= MAX_SKIPPED_STEPS_IN_A_ROW:
            raise NonFiniteError(
                f"step {step}: {in_a_row} steps in a row were not finite ({where}); lower the learning rate or look "
                "at the data, and start again from the last checkpoint, which is good"
            )

    def _run(self, images: tf.Tensor, labels: tf.Tensor) -> _Outcome:
        """The step as one graph.

        What is summed over the ranks travels together: gradients, and in `rest` the row norms times the number of
        samples, the statistics, the fingerprint, and [loss, correct, samples, bad ranks, stop requests].
        """
        # The forward pass changes the statistics; a step that is skipped must put them back.
        before = [tf.identity(statistic) for statistic in self._statistics]
        local = self._accumulate(images, labels, before)
        with tf.name_scope("resrep_checks"):
            marks, is_finite = self._check(before, [local.counts, *local.gradients, *local.statistics])
        weighted_norms = [local.counts[2] * norm for norm in self._optimizer.row_norms()]
        is_bad = 1.0 - tf.cast(tf.reduce_all(is_finite), self._dtype)
        flags = tf.concat([local.counts, [is_bad, self._stop_requested]], 0)
        summed = self._sum(local.gradients, [*weighted_norms, *local.statistics, marks, flags])
        *norms_and_statistics, marks, flags = summed.rest
        loss, correct, count, num_bad, num_stop_requests = tf.unstack(flags)
        has_drifted = differ(marks, self._cluster.size)
        averages = [value / count for value in norms_and_statistics]
        norms, statistics = averages[: len(weighted_norms)], averages[len(weighted_norms) :]
        is_good = (num_bad == 0) & summed.fits & ~has_drifted
        for statistic, new, old in zip(self._statistics, statistics, before, strict=True):
            statistic.assign(tf.where(is_good, new, old))
        if is_good:
            self._apply([value / count for value in summed.gradients], norms)
            self._totals.assign_add(tf.stack([loss, correct, count, 0.0]))
        else:
            # The schedule goes on with the data.
            self._optimizer.iterations.assign_add(1)
            self._totals.assign_add([0.0, 0.0, 0.0, 1.0])
        kind = tf.where(is_good, _GOOD, tf.where(has_drifted, _DRIFTED, self._rescale(num_bad)))
        with tf.device("CPU:0"):
            # There the program can read them without waiting for the update.
            return _Outcome(tf.identity(kind), tf.identity(num_stop_requests), is_finite)

    def _rescale(self, num_bad: tf.Tensor) -> tf.Tensor:
        """Let the loss scale follow the step; returns what the step came to if it was not good.

        The scale answers for gradients that overflow on a rank, in 16 bits. By the time they travel they are
        unscaled: one that is too large for the collective's float16 would not fit at a lower scale either.
        """
        if self._loss_scale is None:
            return tf.constant(_NOT_FINITE)
        is_scale_too_high = (num_bad > 0) & ~self._loss_scale.is_lowest()
        self._loss_scale.update(num_bad == 0)
        return tf.where(is_scale_too_high, _RESCALED, _NOT_FINITE)

    def _check(self, before: list[tf.Tensor], values: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The fingerprint of what all ranks must have alike, and for each value of this rank whether it is finite."""
        marks = fingerprint([*self._watched, *before], self._dtype)
        return marks, tf.stack([_is_finite(value) for value in values])

    def _accumulate(self, images: tf.Tensor, labels: tf.Tensor, before: list[tf.Tensor]) -> _RankSums:
        num_micro_batches, size = self._config.gradient_accumulation_steps, tf.shape(labels)[0]
        if num_micro_batches == 1:
            return self._compute(images, labels)

        def add(number: tf.Tensor, sums: _RankSums) -> tuple[tf.Tensor, _RankSums]:
            start, end = size * number // num_micro_batches, size * (number + 1) // num_micro_batches
            for statistic, value in zip(self._statistics, before, strict=True):
                statistic.assign(value)
            return number + 1, tf.nest.map_structure(tf.add, sums, self._compute(images[start:end], labels[start:end]))

        zeros = _RankSums(
            [tf.zeros(variable.shape, variable.dtype) for variable in self._model.trainable_variables],
            [tf.zeros(variable.shape, variable.dtype) for variable in self._statistics],
            tf.zeros([3], self._dtype),
        )
        # One at a time: two at once would need the memory that accumulation is to save.
        _, sums = tf.while_loop(lambda number, _: number < num_micro_batches, add, [0, zeros], parallel_iterations=1)
        return sums

    def _forward_and_backward(self, images: tf.Tensor, labels: tf.Tensor) -> _RankSums:
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
        return _RankSums(list(gradients), statistics, tf.stack([loss, correct, count]))

    def _sum(self, gradients: Sequence[tf.Tensor], rest: Sequence[tf.Tensor]) -> _ClusterSums:
        """Sum over the ranks in one group, or in two if gradients travel as float16: a group has one type."""
        if self._config.compression == "none" or self._cluster.size == 1:
            summed = self._cluster.sum([*gradients, *rest], "step")
            return _ClusterSums(summed[: len(gradients)], summed[len(gradients) :], tf.constant(True))
        factor = _FLOAT16_FACTOR / self._global_batch_size
        packed = [tf.cast(gradient * factor, tf.float16) for gradient in gradients]
        received = self._cluster.sum(packed, "step_gradients")
        unpacked = [tf.cast(p, g.dtype) / factor for p, g in zip(received, gradients, strict=True)]
        # Finite gradients may be too large for float16; the sums are the same on all ranks, so is the answer.
        fits = tf.reduce_all([_is_finite(value) for value in unpacked])
        return _ClusterSums(unpacked, self._cluster.sum(rest, "step"), fits)

    def _clip_and_apply(self, gradients: list[tf.Tensor], norms: list[tf.Tensor]) -> None:
        if self._config.gradient_clip_norm is not None:
            # The averaged gradients of the objective; the optimizer adds decay and penalty afterwards.
            gradients, _ = tf.clip_by_global_norm(gradients, self._config.gradient_clip_norm)
        pairs = zip(gradients, self._model.trainable_variables, strict=True)
        self._optimizer.apply_gradients(pairs, norms=norms)


def _is_finite(tensor: tf.Tensor) -> tf.Tensor:
    # The sum is where all terms are, and takes less time than a look at each. (Terms that add up to more than the
    # type holds count as not finite; a step is lost long before.)
    return tf.math.is_finite(tf.reduce_sum(tensor))
