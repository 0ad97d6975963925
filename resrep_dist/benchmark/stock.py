"""What our own step is compared with: that of Keras, of Horovod's tape with nothing of ours, and one collective."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.benchmark.arms import Arm, CountingCluster, plain_arm
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import Config, TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import UserError
from resrep_dist.training.losses import make_loss
from resrep_dist.training.reduction import ClusterSums
from resrep_dist.training.step import TrainStep

import tensorflow as tf
from tensorflow import keras


def stock_arm(model: keras.Model, macs: int, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains without pruning by Keras' SGD and Horovod's tape.

    Args:
        model: The model.
        macs: Its multiply-adds.
        config: The configuration.
        cluster: The ranks.
    """
    return _with_step(_StockStep, model, macs, config, cluster)


def keras_arm(model: keras.Model, macs: int, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains without pruning as `fit` does: a compiled model, its own SGD, its own step.

    Args:
        model: The model.
        macs: Its multiply-adds.
        config: The configuration.
        cluster: The ranks; one.

    Raises:
        UserError: If there are several ranks, since the step averages nothing.
    """
    if cluster.size > 1:
        raise UserError(
            f"--arms stock_keras: started on {cluster.size} ranks, expected 1, since Keras' own step sums nothing over "
            "ranks; use stock_horovod there"
        )
    return _with_step(_KerasStep, model, macs, config, cluster)


def one_group_arm(model: keras.Model, macs: int, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains without pruning, with one collective for all, which begins after the backward pass.

    No run trains like this; it shows what the division into several collectives brings.

    Args:
        model: The model.
        macs: Its multiply-adds.
        config: The configuration.
        cluster: The ranks.
    """
    arm = plain_arm(model, macs, config, cluster)
    arm.live.step = _OneGroupStep(arm.cluster, config.training, config.data.global_batch_size)
    arm.live.step.follow(arm.live.state)
    return arm


def _with_step(kind: type["_StockStep"], model: keras.Model, macs: int, config: Config, cluster: Cluster) -> Arm:
    arm = plain_arm(model, macs, config, cluster)
    phase, batch_size = config.train, config.data.global_batch_size
    arm.live.step = kind(arm.cluster, config.training, batch_size, phase.learning_rate, phase.momentum)
    arm.live.step.follow(arm.live.state)
    return arm


class _OneGroupStep(TrainStep):
    def _sum(self, gradients: Sequence[tf.Tensor], rest: Sequence[tf.Tensor]) -> ClusterSums:
        summed = self._cluster.sum([*gradients, *rest], "step_one_group")
        return ClusterSums(summed[: len(gradients)], summed[len(gradients) :], tf.constant(True))


class _StockStep(TrainStep):
    """Keras' SGD, and Horovod's tape, which averages gradients as they come.

    It checks nothing, and has no averages of batch-norm statistics, no weight decay, clipping or accumulation.
    """

    def __init__(
        self, cluster: CountingCluster, config: TrainingConfig, batch_size: int, learning_rate: float, momentum: float
    ) -> None:
        super().__init__(cluster, config, batch_size)
        self._counting, self._rate, self._momentum = cluster, learning_rate, momentum

    def follow(self, state: TrainState) -> None:
        self._model, self._loss = state.model, make_loss(self._config, state.model)
        self._sgd = self._make_sgd()
        self._sgd.build(state.model.trainable_variables)
        # XLA cannot compile Horovod's operations, which are inside.
        self._compiled = tf.function(self._stock_step, jit_compile=self._config.xla and self._counting.size == 1)

    def run(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        self._compiled(images, labels)

    def settle(self) -> None:
        # Waits for the device; the optimizer's own counter may be on the host.
        self._model.trainable_variables[-1].numpy()

    def trace(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        self._compiled.get_concrete_function(images, labels)

    def _make_sgd(self) -> Any:
        sgd = keras.optimizers.SGD(self._rate, momentum=self._momentum, jit_compile=False)
        is_scaled = self._config.precision == "mixed_float16"
        return keras.mixed_precision.LossScaleOptimizer(sgd) if is_scaled else sgd

    def _stock_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        is_scaled = self._config.precision == "mixed_float16"
        with tf.GradientTape() as tape:
            outputs = tf.cast(self._model(images, training=True), self._dtype)
            loss = tf.reduce_mean(self._loss(labels, outputs)) + sum(self._model.losses)
            objective = self._sgd.get_scaled_loss(loss) if is_scaled else loss
        variables = self._model.trainable_variables
        gradients = self._counting.averaging(tape).gradient(objective, variables)
        # Horovod is told of each by its own name.
        for gradient in gradients:
            self._counting.count([gradient])
        if is_scaled:
            gradients = self._sgd.get_unscaled_gradients(gradients)
        self._sgd.apply_gradients(zip(gradients, variables, strict=True))


class _KerasStep(_StockStep):
    """The step of a compiled model, which gets its batches from an iterator as in `fit`."""

    def follow(self, state: TrainState) -> None:
        self._model, loss = state.model, make_loss(self._config, state.model)
        self._sgd = self._make_sgd()
        self._model.compile(self._sgd, loss=lambda labels, outputs: loss(labels, outputs), jit_compile=self._config.xla)
        self._batches: Any = None

    def trace(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        self._batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
        # Compiles with its first call.
        self.run(images, labels)

    def run(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        self._model.make_train_function()(self._batches)
