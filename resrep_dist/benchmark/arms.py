"""Models whose training steps are timed against each other: how they are made, warmed and timed in turn."""

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.benchmark.peak_memory import peak_memory_growth
from resrep_dist.config import Config, ShrinkConfig
from resrep_dist.data.order import rank_part
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.graph import Graph, trace
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.models.building import build_model
from resrep_dist.pruning.targets import require_prunable
from resrep_dist.shrinking.surgery import with_channels
from resrep_dist.training.fingerprint import NUM_FINGERPRINT_VALUES
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import model_for_training, plan_phase, pruning_of
from resrep_dist.training.step import TrainStep

import numpy as np
import tensorflow as tf
from tensorflow import keras

# How long a phase is does not matter for the time of a step.
NUM_SAMPLES = 100_000
_NUM_WARM_STEPS = 2

Batch = tuple[tf.Tensor, tf.Tensor]
Rounds = Sequence[Sequence[float]]


class CountingCluster(Cluster):
    """The ranks that are there, and the bytes that a step gives to its collectives."""

    def __init__(self, cluster: Cluster) -> None:
        # It is the same Horovod, which is started once.
        self.__dict__.update(vars(cluster))
        self.num_bytes = 0

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """As in a cluster; counts when it is called, so inside a `tf.function` once for each graph."""
        self.num_bytes += _num_bytes(tensors)
        return super().sum(tensors, name)


@dataclasses.dataclass
class Arm:
    """What trains one model, the multiply-adds of a pass through it, and the figures of `trace_and_warm`."""

    live: LiveModel
    macs: int
    cluster: CountingCluster
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


def prepare(config: Config) -> tuple[keras.Model, Graph]:
    """The configuration's model with its starting weights, on every rank alike, and its graph.

    Raises:
        UserError: where nothing of it can be pruned.
    """
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    model = build_model(config.model)
    prune = pruning_of(config)
    graph = trace(model, prune.exclude, prune.residual_groups)
    require_prunable(model.name, graph)
    return model, graph


def plain_arm(model: keras.Model, macs: int, config: Config, cluster: Cluster) -> Arm:
    """Training without pruning, by the same step; that all is finite is looked at here too."""
    # The phase `train`, so that all arms have the same optimizer settings.
    config = dataclasses.replace(config, prune=None, base=None, shrink=ShrinkConfig())
    counting = CountingCluster(cluster)
    model = model_for_training(model, None, config, counting)
    plan = plan_phase(config, None, NUM_SAMPLES)
    return Arm(LiveModel(model, None, plan, config.training, counting), macs, counting)


def compactors_arm(model: keras.Model, graph: Graph, config: Config, cluster: Cluster) -> Arm:
    """Compactors trained like any convolution: what they cost without ResRep's rule."""
    arm = plain_arm(insert_compactors(model, graph), 0, config, cluster)
    arm.macs = training_macs(arm.live.state.model, graph, graph.widths)
    return arm


def pruned_arm(model: keras.Model, graph: Graph, channels: KeptChannels, config: Config, cluster: Cluster) -> Arm:
    """ResRep on a model in training that has these channels."""
    counting = CountingCluster(cluster)
    model = with_channels(model_for_training(model, graph, config, counting), graph, channels)
    live = LiveModel(model, graph, plan_phase(config, graph, NUM_SAMPLES), config.training, counting, channels)
    return Arm(live, training_macs(model, graph, channels.widths, channels.is_refolded), counting)


class _UncheckedStep(TrainStep):
    """A step that takes it for granted that all is finite, and alike on all ranks."""

    def _check(self, before: list[tf.Tensor], values: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([NUM_FINGERPRINT_VALUES], keras.backend.floatx()), tf.ones([len(values)], tf.bool)


def unchecked_arm(model: keras.Model, graph: Graph, config: Config, cluster: Cluster) -> Arm:
    """ResRep at full width without the checks of a step: what these cost. No run trains like this.

    On one rank TensorFlow finds then that every step is good, and leaves out the branch for others too.
    """
    arm = pruned_arm(model, graph, KeptChannels.all_of(graph), config, cluster)
    arm.live.step = _UncheckedStep(arm.cluster, config.training, config.data.global_batch_size)
    arm.live.step.follow(arm.live.state)
    return arm


def noise_batch(model: keras.Model, config: Config, cluster: Cluster) -> Batch:
    """This rank's part of a batch of noise."""
    random = np.random.default_rng(config.seed)
    size = config.data.global_batch_size
    start, end = rank_part(size, cluster.rank, cluster.size)
    images = random.normal(size=[end - start, *model.input_shape[1:]]).astype(np.float32)
    return tf.constant(images), tf.constant(random.integers(0, config.model.num_classes, len(images)))


def trace_and_warm(arm: Arm, batch: Batch) -> None:
    """Fill the arm's `tracing_seconds`, `reduced_bytes`, `gradient_bytes` among them, and `peak_memory_bytes`."""
    start = time.perf_counter()
    arm.live.step.trace(*batch)
    arm.figures["tracing_seconds"] = time.perf_counter() - start
    arm.figures["reduced_bytes"] = arm.cluster.num_bytes
    arm.figures["gradient_bytes"] = _num_bytes(arm.live.state.model.trainable_variables)
    _times(arm.live, batch, _NUM_WARM_STEPS)
    growth = peak_memory_growth(lambda: _times(arm.live, batch, 1))
    arm.figures["peak_memory_bytes"] = None if growth is None else growth + _num_bytes(arm.live.state.values())


def time_in_turn(
    arms: Mapping[str, Arm], batch: Batch, num_steps: int, num_rounds: int, cluster: Cluster
) -> dict[str, list[list[float]]]:
    """For every arm and round the milliseconds of `num_steps` steps, each that of its slowest rank; a collective."""
    rounds: dict[str, list[list[float]]] = {name: [] for name in arms}
    for number in range(num_rounds):
        # Not always in the same order: what runs after a heavy arm may find a warmer machine.
        names = list(arms)[number % len(arms) :] + list(arms)[: number % len(arms)]
        for name in names:
            rounds[name].append(_slowest_rank(_times(arms[name].live, batch, num_steps), cluster))
    return rounds


def time_ratio(rounds: Rounds, other_rounds: Rounds) -> float:
    """Median over the rounds of the ratio of their median times: round by round, since a machine's speed drifts."""
    pairs = zip(rounds, other_rounds, strict=True)
    return statistics.median(statistics.median(own) / statistics.median(other) for own, other in pairs)


def setting(config: Config, graph: Graph, cluster: Cluster, num_steps: int, num_rounds: int) -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "model": config.model.name,
        "image_size_pixels": config.model.image_size,
        "global_batch_size_images": config.data.global_batch_size,
        "num_ranks": cluster.size,
        "num_cores": visible_cores(),
        "num_steps": num_steps,
        "num_rounds": num_rounds,
        "original_widths_channels": graph.widths,
        "tensorflow": tf.__version__,
    }


def _num_bytes(tensors: Iterable[Any]) -> int:
    return sum(int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.size for tensor in tensors)


def _times(live: LiveModel, batch: Batch, num_steps: int) -> list[float]:
    """Milliseconds of each step on this rank."""
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        live.step.run(*batch)
        # A device may still be at work when the call returns.
        live.state.optimizer.iterations.numpy()
        times.append(1000.0 * (time.perf_counter() - start))
    return times


def _slowest_rank(times: list[float], cluster: Cluster) -> list[float]:
    """Of each step the longest time of all ranks, on all of them."""
    return cluster.gather(np.array(times)).max(axis=0).tolist()
