"""One training step: forward, backward, a few collectives, update."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.checkpoints.variables import batch_norm_statistics, plain_name
from resrep_dist.config import TrainingConfig
from resrep_dist.config.tasks import TASKS
from resrep_dist.data.mixing import Labels
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.flat import pack, unpack
from resrep_dist.models.calling import with_autograph
from resrep_dist.training.determinism import check_determinism, clear_refusals
from resrep_dist.training.distillation import Teacher
from resrep_dist.training.fingerprint import NUM_FINGERPRINT_VALUES, differ, fingerprint
from resrep_dist.training.loss_scale import LossScale
from resrep_dist.training.losses import make_loss
from resrep_dist.training.outcome import DRIFTED, GOOD, NOT_FINITE, RESCALED, Outcomes
from resrep_dist.training.randomness import LayerRandomness, warn_of_other_randomness
from resrep_dist.training.reduction import ClusterSums, RankSums, are_finite, sum_over_ranks
from resrep_dist.training.scores import correct_shares

import tensorflow as tf
from tensorflow import keras


class TrainStep:
    """The compiled step of one rank. Its metrics stay on the device until they are read.

    So does what came of it, until the next step has been launched or `settle` is called, see `Outcomes`.

    A rank can divide its part of the batch into micro-batches (gradient accumulation). Each micro-batch is treated like
    the part of a rank: its gradients are sums over samples, and its batch norms use its own statistics, with whose
    average the running statistics are updated once. So 1 rank with 4 micro-batches and 4 ranks with one each give the
    same result.

    Attributes:
        variables: The variables of the step itself, which are those of the loss scale. They are part of each state that
            it follows, and so of the checkpoints.

    Args:
        cluster: The ranks.
        config: Loss, precision, accumulation, compression and clipping.
        global_batch_size: Number of samples per step, over all ranks; they have to get as many.
        seed: Seed of the random numbers of layers, such as Dropout.
        teacher: Model whose outputs the trained one is to match; None for the labels alone.
        task: What the labels say; see `Config.task`.
    """

    def __init__(
        self, cluster: Cluster, config: TrainingConfig, global_batch_size: int, seed: int = 0,
        teacher: Teacher | None = None, task: str = "classification",
    ) -> None:  # fmt: skip
        self._cluster, self._config, self._teacher, self._task = cluster, config, teacher, task
        self._global_batch_size, self._seed = global_batch_size, seed
        self._dtype = keras.backend.floatx()
        self._loss_scale = LossScale() if config.precision == "mixed_float16" else None
        self.variables = self._loss_scale.variables if self._loss_scale else {}
        self._outcomes = Outcomes(cluster, self._dtype)
        # loss sum, correct, samples, skipped steps
        self._totals = tf.Variable(tf.zeros([4], self._dtype), trainable=False)
        self._stop_requested = tf.Variable(0.0, trainable=False, dtype=self._dtype)

    def follow(self, state: TrainState) -> None:
        """Train another state from now on. Metrics that were not read yet are kept. The last step has to be settled.

        Args:
            state: A state of the same run, whose model may be smaller.
        """
        self._state, self._model, self._optimizer = state, state.model, state.optimizer
        self._loss = make_loss(self._config, state.model, self._task)
        self._randomness = LayerRandomness(state.model, self._seed, self._global_batch_size, self._cluster)
        self._statistics = batch_norm_statistics(state.model)
        self._statistics_shapes = [statistic.shape for statistic in self._statistics]
        weights = [f"the gradient of {plain_name(variable)}" for variable in state.model.trainable_variables]
        names = ["the loss", *weights, *map(plain_name, self._statistics)]
        # Compared in every step: they decide which channels die. Statistics are compared too, since a step averages
        # them over the ranks, and a difference would no longer show afterwards.
        self._watched = [variable for c in self._optimizer.compactors for variable in (c.kernel, c.mask)]
        compared = {plain_name(variable): variable for variable in [*self._watched, *self._statistics]}
        self._outcomes.follow(state, names, compared)
        self._compute, self._apply = self._forward_and_backward, self._clip_and_apply
        if self._config.xla:
            # The collectives are not part of it, since XLA cannot compile them.
            self._compute = tf.function(self._compute, jit_compile=True, reduce_retracing=True, autograph=False)
            self._apply = tf.function(self._apply, jit_compile=True, autograph=False)
        # Nothing here but what users have written branches on values, and AutoGraph would take seconds to find that
        # out.
        self._compiled = tf.function(self._run, reduce_retracing=True, autograph=False)
        self._collective_alone: Any = None
        self._is_traced = False

    def run(self, images: tf.Tensor, labels: Labels) -> None:
        """Make one step, and look at what came of the one before it. A collective.

        Another collective follows only if that one failed, to find out where.

        Args:
            images: This rank's part of the batch, [B, height, width, channels].
            labels: Integer labels, int64 [B], or MixedLabels; for other tasks see `ImageSource.load`.

        Raises:
            ConfigError: Before the first step, if it has to be deterministic and cannot be, or XLA cannot compile it.
            NonFiniteError: As `settle`.
            DisagreementError: As `settle`.
        """
        if not self._is_traced:
            self.trace(images, labels)
        with clear_refusals(self._config):
            self._compiled(images, labels)
        self._outcomes.launched()

    def settle(self) -> None:
        """Wait for the last step, and look at what came of it. A collective if it failed.

        Raises:
            NonFiniteError: On every rank, if too many steps in a row were skipped because values were not finite.
            DisagreementError: On every rank, if their compactors, masks or batch-norm statistics differ.
        """
        self._outcomes.settle()

    def read_metrics(self) -> dict[str, float]:
        """Return the metrics over all ranks since the last call. Settles the last step.

        Returns:
            The mean `loss`, the task's `training_score` (percent), `skipped_steps` and `skipped_steps_in_a_row`.
        """
        self.settle()
        loss, correct, count, skipped = (float(value) for value in self._totals.numpy())
        self._totals.assign(tf.zeros_like(self._totals))
        count = max(count, 1.0)
        return {
            "loss": loss / count,
            TASKS[self._task].training_score: 100.0 * correct / count,
            "skipped_steps": skipped,
            "skipped_steps_in_a_row": float(self._outcomes.num_skipped_in_a_row),
        }

    def trace(self, images: tf.Tensor, labels: Labels) -> None:
        """Trace the step now, so that the first step does not have to.

        Args:
            images: Images of the shape and type of this rank's part of a batch.
            labels: Their labels.

        Raises:
            ConfigError: If the step has to be deterministic and cannot be.
        """
        graph = self._compiled.get_concrete_function(images, labels).graph
        layers = [layer.name for layer in self._model.layers]
        check_determinism(self._config, graph, layers)
        warn_of_other_randomness(graph, layers)
        self._is_traced = True

    def collective_seconds(self) -> float:
        """Measure the time of the step's collectives alone, without waiting for slower ranks. A collective."""
        if self._collective_alone is None:
            # Compiled only if it is used.
            self._collective_alone = tf.function(self._sum_alone, autograph=False)
        # Arguments, not constants: TensorFlow could sum constants when it traces the function.
        gradients = [tf.zeros(variable.shape, variable.dtype) for variable in self._model.trainable_variables]
        rest = pack(
            [*self._optimizer.row_norms(), *self._statistics, tf.zeros([NUM_FINGERPRINT_VALUES + 5], self._dtype)]
        )
        seconds = []
        # The first one is not counted, since it waits for the slowest rank.
        for _ in range(4):
            start = time.perf_counter()
            self._collective_alone(gradients, tf.zeros_like(rest)).numpy()
            seconds.append(time.perf_counter() - start)
        return median(seconds[1:])

    def _sum_alone(self, gradients: list[tf.Tensor], rest: tf.Tensor) -> tf.Tensor:
        summed = self._sum(gradients, [rest])
        # Waits for all of them.
        return tf.add_n([tf.reshape(value, [-1])[0] for value in [*summed.gradients, *summed.rest]])

    def request_stop(self) -> None:
        """Make the next step tell all ranks that this one was asked to stop."""
        self._stop_requested.assign(1.0)

    def forget_last(self) -> None:
        """Forget what an earlier run has left: a request to stop, and the outcome of a last step that failed."""
        self._stop_requested.assign(0.0)
        self._outcomes.forget()

    def is_stop_requested(self) -> bool:
        """Return True, on all ranks alike, if a rank had called `request_stop` before the last step looked at."""
        return self._outcomes.num_stop_requests > 0

    def _run(self, images: tf.Tensor, labels: Labels) -> None:
        """Make the step, as one graph, and copy the outcome of the step before it to the host.

        Gradients are summed over the ranks in a few collectives, as they are computed. One more has the rest: the
        row norms, the statistics, the fingerprint, and the flags [loss, correct, samples, ranks with values that
        are not finite, ranks asked to stop]. Averages are divided by the number of all samples before they are summed.

        Whether the step is applied is decided from these sums, which are the same on all ranks, so all decide alike. It
        is decided on the device and without a branch. Otherwise the host would have to wait for the collective, read
        the flags, and start the update, while the device has nothing to do.
        """
        self._outcomes.keep()
        # The forward pass updates the statistics. A skipped step restores them, so that values which are not finite, or
        # differ between the ranks, do not remain.
        before = pack(self._statistics, self._dtype)
        local = self._accumulate(images, labels, before)
        row_norms = self._optimizer.row_norms()
        with tf.name_scope("resrep_checks"):
            values = [local.counts, *local.gradients, *unpack(local.statistics, self._statistics_shapes)]
            marks, are_all_finite = self._check(before, values)
        norms = local.counts[2] / self._global_batch_size * pack(row_norms, self._dtype)
        is_bad = 1.0 - tf.cast(tf.reduce_all(are_all_finite), self._dtype)
        flags = tf.concat([local.counts, [is_bad, self._stop_requested]], 0)
        summed = self._sum(local.gradients, [norms, local.statistics, marks, flags])
        norms, statistics, marks, flags = summed.rest
        loss, correct, count, num_bad, num_stop_requests = tf.unstack(flags)
        has_drifted = differ(marks, self._cluster.size)
        is_good = (num_bad == 0) & summed.fits & ~has_drifted
        self._assign_statistics(tf.where(is_good, statistics, before))
        # A batch that is skipped is used up, so its step counts for the learning-rate schedule.
        self._apply(summed.gradients, unpack(norms, [norm.shape for norm in row_norms]), is_good)
        totals = tf.stack([loss, correct, count, 0.0])
        self._totals.assign_add(tf.where(is_good, totals, tf.constant([0.0, 0.0, 0.0, 1.0], self._dtype)))
        kind = tf.where(is_good, GOOD, tf.where(has_drifted, DRIFTED, self._rescale(num_bad)))
        self._outcomes.put(kind, num_stop_requests, are_all_finite)

    def _rescale(self, num_bad: tf.Tensor) -> tf.Tensor:
        """Update the loss scale, and return the kind of a step that is not good.

        The scale can only fix 16-bit gradients that overflow on a rank. They are divided by the scale before they are
        summed. So a sum that is too large for the collective's float16 would be too large at a lower scale too.
        """
        if self._loss_scale is None:
            return tf.constant(NOT_FINITE)
        is_scale_too_high = (num_bad > 0) & ~self._loss_scale.is_lowest()
        self._loss_scale.update(num_bad == 0)
        return tf.where(is_scale_too_high, RESCALED, NOT_FINITE)

    def _check(self, before: tf.Tensor, values: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the fingerprint of what must be the same on all ranks, and for each value whether it is finite."""
        marks = fingerprint([*self._watched, before], self._dtype)
        return marks, are_finite(values)

    def _accumulate(self, images: tf.Tensor, labels: Labels, before: tf.Tensor) -> RankSums:
        num_micro_batches, size = self._config.gradient_accumulation_steps, tf.shape(images)[0]
        positions = self._randomness.positions(self._optimizer.iterations, size)
        if num_micro_batches == 1:
            return self._compute(images, labels, positions)

        def add(number: tf.Tensor, sums: RankSums) -> tuple[tf.Tensor, RankSums]:
            start, end = size * number // num_micro_batches, size * (number + 1) // num_micro_batches
            self._assign_statistics(before)
            parts = tf.nest.map_structure(lambda whole: whole[start:end], [images, labels, positions])
            return number + 1, tf.nest.map_structure(tf.add, sums, self._compute(*parts))

        zeros = RankSums(
            [tf.zeros(variable.shape, variable.dtype) for variable in self._model.trainable_variables],
            tf.zeros_like(before),
            tf.zeros([3], self._dtype),
        )
        # One at a time, since accumulation is used to save memory.
        _, sums = tf.while_loop(lambda number, _: number < num_micro_batches, add, [0, zeros], parallel_iterations=1)
        return sums

    def _forward_and_backward(self, images: tf.Tensor, labels: Labels, positions: tf.Tensor) -> RankSums:
        count = tf.cast(tf.shape(images)[0], self._dtype)
        # This rank's part of all samples.
        share = count / self._global_batch_size
        with self._randomness.at(positions), tf.GradientTape() as tape:
            outputs = tf.cast(with_autograph(self._model, images, training=True), self._dtype)
            losses = tf.cast(with_autograph(self._loss, labels, outputs), self._dtype)
            if self._teacher:
                losses = self._teacher.taught(losses, images, outputs)
            loss = tf.reduce_sum(losses)
            # Divided by the number of all samples, since parts may differ in size.
            objective = loss / self._global_batch_size + share * sum(self._model.losses)
            # The 16-bit gradients are means over this rank's samples, whose size does not depend on their number.
            scale = tf.cast(self._loss_scale.value, self._dtype) / share if self._loss_scale else None
            scaled = objective if scale is None else objective * scale
        gradients = tape.gradient(
            scaled, self._model.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        # Those of an embedding are slices, which the ranks cannot sum.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
        correct = tf.reduce_sum(correct_shares(self._model, labels, outputs))
        return RankSums(gradients, share * pack(self._statistics, self._dtype), tf.stack([loss, correct, count]))

    def _sum(self, gradients: Sequence[tf.Tensor], rest: Sequence[tf.Tensor]) -> ClusterSums:
        return sum_over_ranks(self._cluster, gradients, rest, self._config.compression)

    def _assign_statistics(self, values: tf.Tensor) -> None:
        for statistic, value in zip(self._statistics, unpack(values, self._statistics_shapes), strict=True):
            statistic.assign(value)

    def _clip_and_apply(self, gradients: list[tf.Tensor], norms: list[tf.Tensor], is_good: tf.Tensor) -> None:
        if self._config.gradient_clip_norm is not None:
            # Clips the averaged gradients of the objective; the optimizer adds weight decay and penalty afterwards.
            gradients, _ = tf.clip_by_global_norm(gradients, self._config.gradient_clip_norm)
        pairs = zip(gradients, self._model.trainable_variables, strict=True)
        self._optimizer.apply_gradients(pairs, norms=norms, is_good=is_good)
        if self._state.average:
            self._state.average.update(self._optimizer.compactors, self._optimizer.iterations, is_good)
