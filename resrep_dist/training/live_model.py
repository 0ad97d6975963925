"""The state of a phase, and the objects that are compiled for its model."""

from collections.abc import Iterator

from resrep_dist.checkpoints.average import WeightAverage
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import DataConfig, TrainingConfig
from resrep_dist.data.batches import Batches
from resrep_dist.data.order import training_batches
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.insertion import compactors_of, has_compactors
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.training.distillation import Teacher
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import PhasePlan
from resrep_dist.training.step import TrainStep

import tensorflow as tf
from tensorflow import keras


class LiveModel:
    """The state of a phase with the step, the evaluator and, if it prunes, the pruner.

    Attributes:
        state: The current state; `follow` replaces it.
        step: The compiled training step.
        evaluator: The compiled evaluation.
        pruner: Chooses the masks; None without a graph, and once the model has been merged during its training.

    Args:
        model: Model ready for training, see `model_for_training`. With a graph it has the graph's compactors.
        graph: Trace of the original model; None for training without pruning.
        plan: Length, learning rate and settings of the phase.
        training: Settings of the training steps.
        cluster: The ranks.
        channels: The original channels that the model has; None for all.
        teacher: Model whose outputs the trained one is to match; None for the labels alone.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: Graph | None,
        plan: PhasePlan,
        training: TrainingConfig,
        cluster: Cluster,
        channels: KeptChannels | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self._metrics, self._task, self._seed, self._cluster = training.metrics, plan.task, plan.seed, cluster
        self._num_micro_batches = training.gradient_accumulation_steps
        self.step = TrainStep(cluster, training, plan.global_batch_size, plan.seed, teacher, plan.task)
        if graph:
            channels = channels or KeptChannels.all_of(graph)
        decay = plan.phase.weight_average_decay
        average = WeightAverage(model, decay) if decay is not None else None
        state = TrainState(model, _make_optimizer(model, graph, plan), channels, self.step.variables, average)
        self.pruner = _make_pruner(state, graph, plan, cluster) if graph and has_compactors(model) else None
        self.follow(state)

    def follow(self, state: TrainState) -> None:
        """Continue with another state of the same run.

        Args:
            state: A state whose model may be smaller.
        """
        self.state = state
        self.evaluator = Evaluator(state.evaluated_model(), self._metrics, self._task)
        self.step.follow(state)
        if not has_compactors(state.model):
            self.pruner = None
        if self.pruner:
            self.pruner.follow(state)

    def batches(self, source: ImageSource, data: DataConfig) -> Batches:
        """Return this rank's part of each batch of training, from the current step on.

        Args:
            source: The training set.
            data: Batches and augmentation.
        """
        return training_batches(
            source,
            global_batch_size=data.global_batch_size,
            augmentation=data.augmentation,
            seed=self._seed,
            rank=self._cluster.rank,
            num_ranks=self._cluster.size,
            first_step=self.state.step,
            num_threads=self._cluster.num_cores,
            config=data,
        )

    def micro_batches(self, images: tf.Tensor) -> Iterator[tf.Tensor]:
        """Divide this rank's part of a batch into parts that are no larger than what a step computes at once.

        Args:
            images: [B, height, width, channels].
        """
        size = -(-len(images) // self._num_micro_batches)
        return (images[start : start + size] for start in range(0, len(images), size))

    def evaluate(self, source: ImageSource, batch_size: int) -> dict[str, float]:
        """Evaluate the model, or the one with averaged weights if there is one. A collective.

        Args:
            source: The data.
            batch_size: Number of samples per batch on each rank.
        """
        # Sets the weights that are not averaged.
        self.state.evaluated_model()
        return self.evaluator.evaluate(source, batch_size, self._cluster)


def _make_pruner(state: TrainState, graph: Graph, plan: PhasePlan, cluster: Cluster) -> Pruner:
    masks = plan.require_masks()
    return Pruner(state, graph, masks.config, cluster, first_step=masks.first_step, last_step=masks.last_step)


def _make_optimizer(model: keras.Model, graph: Graph | None, plan: PhasePlan) -> ResRepOptimizer:
    momentum, decay = plan.phase.momentum, plan.phase.weight_decay
    if graph is None:
        return ResRepOptimizer(plan.schedule, momentum=momentum, decay=decay)
    masks = plan.require_masks()
    return ResRepOptimizer(
        plan.schedule,
        compactors_of(model, graph),
        momentum=momentum,
        decay=decay,
        lasso_strength=masks.lasso_strength,
        kept_lasso_strength=masks.config.kept_lasso_strength,
        compactor_momentum=masks.config.compactor_momentum,
        rule=masks.config.rule,
    )
