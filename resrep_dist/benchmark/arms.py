"""The arms of a benchmark: models whose training steps are timed in turn."""

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.benchmark.peak_memory import peak_memory_growth
from resrep_dist.config import Config, DistillationConfig, ShrinkConfig
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
from resrep_dist.training.determinism import enable_determinism
from resrep_dist.training.distillation import make_teacher
from resrep_dist.training.fingerprint import NUM_FINGERPRINT_VALUES
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import model_for_training, plan_phase, pruning_of
from resrep_dist.training.step import TrainStep

import numpy as np
import tensorflow as tf
from tensorflow import keras

NUM_SAMPLES = 100_000
"""Number of training samples that a phase is planned for; it has no influence on the time of a step."""
_NUM_WARM_STEPS = 2

Batch = tuple[tf.Tensor, tf.Tensor]
"""Images [B, height, width, channels] and labels [B]."""
Rounds = Sequence[Sequence[float]]
"""For each round the times of its steps, milliseconds."""


class CountingCluster(Cluster):
    """A cluster that counts what a step gives to its collectives.

    Args:
        cluster: The cluster that it stands for.

    Attributes:
        num_bytes: Number of bytes per step on this rank.
        num_tensors: Number of tensors per step, of each of which all ranks have to tell that it is there.
    """

    def __init__(self, cluster: Cluster) -> None:
        # Not super().__init__(), which would start Horovod a second time.
        self.__dict__.update(vars(cluster))
        self.num_bytes = self.num_tensors = 0

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Sum as a cluster does. Bytes are counted per call, so in a `tf.function` once per graph."""
        self.count(tensors)
        return super().sum(tensors, name)

    def count(self, tensors: Sequence[tf.Tensor]) -> None:
        """Count tensors that travel as one."""
        self.num_bytes += _num_bytes(tensors)
        self.num_tensors += 1


@dataclasses.dataclass
class Arm:
    """A model in training, as a benchmark measures it."""

    live: LiveModel
    """The model with its optimizer and its training step."""
    macs: int
    """Multiply-adds of a forward pass of one image, including compactors."""
    cluster: CountingCluster
    """The cluster of its training step."""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The measurements of `trace_and_warm`."""


def prepare(config: Config) -> tuple[keras.Model, Graph]:
    """Build the model of a configuration, with the same weights on every rank, and its graph.

    Args:
        config: The configuration, with a section `prune`.

    Returns:
        The model without compactors, and its graph.

    Raises:
        UserError: If the model cannot be built or has nothing to prune.
    """
    keras.utils.set_random_seed(config.seed)
    enable_determinism(config.training, config.seed)
    model = build_model(config.model, config.task)
    prune = pruning_of(config)
    graph = trace(model, prune.exclude, prune.residual_groups)
    require_prunable(model.name, graph)
    return model, graph


def plain_arm(model: keras.Model, macs: int, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains without pruning, by the same training step with its check for finite values.

    Args:
        model: The model.
        macs: Its multiply-adds.
        config: The configuration.
        cluster: The ranks.
    """
    # The phase `train`, so that all arms have the same settings of the optimizer.
    config = dataclasses.replace(config, prune=None, base=None, shrink=ShrinkConfig())
    counting = CountingCluster(cluster)
    model = model_for_training(model, None, config, counting)
    plan = plan_phase(config, None, NUM_SAMPLES)
    return Arm(LiveModel(model, None, plan, config.training, counting), macs, counting)


def compactors_arm(model: keras.Model, graph: Graph, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains compactors like any convolution: their cost without ResRep's penalty and masks.

    Args:
        model: The model without compactors.
        graph: Its graph.
        config: The configuration.
        cluster: The ranks.
    """
    arm = plain_arm(insert_compactors(model, graph), 0, config, cluster)
    arm.macs = training_macs(arm.live.state.model, graph, KeptChannels.all_of(graph))
    return arm


def taught_arm(model: keras.Model, graph: Graph, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains with ResRep and a teacher of the same size, see `train.distillation`.

    Args:
        model: The model without compactors, which is the teacher too.
        graph: Its graph.
        config: The configuration.
        cluster: The ranks.
    """
    distillation = config.train.distillation or DistillationConfig()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, distillation=distillation))
    return pruned_arm(model, graph, KeptChannels.all_of(graph), config, cluster)


def pruned_arm(model: keras.Model, graph: Graph, channels: KeptChannels, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains with ResRep a model with some of its channels.

    Args:
        model: The model without compactors.
        graph: Its graph.
        channels: The channels that it has.
        config: The configuration.
        cluster: The ranks.
    """
    counting = CountingCluster(cluster)
    teacher = make_teacher(model, config)
    model = with_channels(model_for_training(model, graph, config, counting), graph, channels)
    plan = plan_phase(config, graph, NUM_SAMPLES)
    live = LiveModel(model, graph, plan, config.training, counting, channels, teacher)
    return Arm(live, training_macs(model, graph, channels), counting)


class _UncheckedStep(TrainStep):
    """A training step without the checks that values are finite and equal on all ranks."""

    def _check(self, before: tf.Tensor, values: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([NUM_FINGERPRINT_VALUES], keras.backend.floatx()), tf.ones([len(values)], tf.bool)


def unchecked_arm(model: keras.Model, graph: Graph, config: Config, cluster: Cluster) -> Arm:
    """Return an arm that trains with ResRep at full width without the checks of a step, to measure their cost.

    No run trains like this.

    Args:
        model: The model without compactors.
        graph: Its graph.
        config: The configuration.
        cluster: The ranks.
    """
    arm = pruned_arm(model, graph, KeptChannels.all_of(graph), config, cluster)
    arm.live.step = _UncheckedStep(arm.cluster, config.training, config.data.global_batch_size, task=config.task)
    arm.live.step.follow(arm.live.state)
    return arm


def noise_batch(model: keras.Model, config: Config, cluster: Cluster) -> Batch:
    """Return this rank's part of a global batch of noise with random labels, for the model and configuration."""
    random = np.random.default_rng(config.seed)
    size = config.data.global_batch_size
    start, end = rank_part(size, cluster.rank, cluster.size)
    images = random.normal(size=[end - start, *model.input_shape[1:]]).astype(np.float32)
    shape = model.output_shape[1:] if config.task == "multilabel" else model.output_shape[1:-1]
    num_values = 2 if config.task == "multilabel" else config.model.num_classes
    return tf.constant(images), tf.constant(random.integers(0, num_values, (len(images), *shape)))


def trace_and_warm(arm: Arm, batch: Batch) -> None:
    """Trace and run the first steps of an arm, and measure what they take.

    Fills `figures` with `tracing_seconds`, `reduced_bytes` per step, the part of them that are gradients as
    `gradient_bytes`, the number of tensors as which they travel as `negotiated_tensors`, and `peak_memory_bytes` (None
    if it is not known).

    Args:
        arm: The arm, changed in place.
        batch: This rank's part of a batch.
    """
    start = time.perf_counter()
    arm.live.step.trace(*batch)
    arm.figures["tracing_seconds"] = time.perf_counter() - start
    arm.figures["reduced_bytes"] = arm.cluster.num_bytes
    arm.figures["negotiated_tensors"] = arm.cluster.num_tensors
    arm.figures["gradient_bytes"] = _num_bytes(arm.live.state.model.trainable_variables)
    _times(arm.live, batch, _NUM_WARM_STEPS)
    growth = peak_memory_growth(lambda: _times(arm.live, batch, 1))
    arm.figures["peak_memory_bytes"] = None if growth is None else growth + _num_bytes(arm.live.state.values())


def time_in_turn(
    arms: Mapping[str, Arm], batch: Batch, num_steps: int, num_rounds: int, cluster: Cluster
) -> dict[str, list[list[float]]]:
    """Time the steps of all arms in turn. A collective.

    Args:
        arms: The arms by name.
        batch: This rank's part of a batch.
        num_steps: Number of steps of each arm per round.
        num_rounds: Number of rounds.
        cluster: The ranks.

    Returns:
        For each arm, by name, and each round the times of its steps on the slowest rank, milliseconds.
    """
    rounds: dict[str, list[list[float]]] = {name: [] for name in arms}
    for number in range(num_rounds):
        # In another order in each round, since the processor may be slower after an arm that heats it.
        names = list(arms)[number % len(arms) :] + list(arms)[: number % len(arms)]
        for name in names:
            rounds[name].append(_slowest_rank(_times(arms[name].live, batch, num_steps), cluster))
    return rounds


def time_ratio(rounds: Rounds, other_rounds: Rounds) -> float:
    """Return the median over the rounds of the ratio of the median times of two arms.

    The ratio is taken for each round, since the speed of a machine changes slowly over time.
    """
    pairs = zip(rounds, other_rounds, strict=True)
    return statistics.median(statistics.median(own) / statistics.median(other) for own, other in pairs)


def setting(config: Config, graph: Graph, cluster: Cluster, num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Return what was measured and on what, as entries of `benchmark.json`."""
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
    """Run steps and return the time of each on this rank, milliseconds; on a GPU their mean.

    A GPU computes a step while the host launches the next one, as in a run, so the time of one alone is not known.
    """
    num_waits = 1 if tf.config.list_logical_devices("GPU") else num_steps
    times = []
    for _ in range(num_waits):
        start = time.perf_counter()
        for _ in range(num_steps // num_waits):
            live.step.run(*batch)
        live.step.settle()
        times.append(1000.0 * (time.perf_counter() - start) * num_waits / num_steps)
    return times * (num_steps // num_waits)


def _slowest_rank(times: list[float], cluster: Cluster) -> list[float]:
    """Return for each step the longest time of all ranks, on all of them."""
    return cluster.gather(np.array(times)).max(axis=0).tolist()
