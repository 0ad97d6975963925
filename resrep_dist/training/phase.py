"""What a phase of a run is made of: its section of the configuration, its data, its model."""

import dataclasses

from resrep_dist.config import Config, PhaseConfig, PruneConfig
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph, flatten
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.layers.sync_batch_norm import with_sync_batch_norm
from resrep_dist.training.schedules import PhaseSchedule, phase_schedule

from tensorflow import keras


def phase_of(config: Config, graph: Graph | None) -> PhaseConfig:
    """The section of the configuration that says how long and at what rate."""
    phase = config.train if graph or config.prune is None else config.base
    if phase is None:
        raise ConfigError("base: missing; training without a graph needs the section `base`")
    return phase


def pruning_of(config: Config) -> PruneConfig:
    """The section `prune`, which a phase with a graph needs."""
    if config.prune is None:
        raise ConfigError("prune: missing; expected with a graph, since the section says what to prune")
    return config.prune


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """What a phase follows: its sections of the configuration, when it ends, its learning rate."""

    phase: PhaseConfig
    prune: PruneConfig | None
    """None for a phase that does not prune."""
    global_batch_size: int
    steps_per_epoch: float
    num_steps: int
    max_steps: int
    """The end if masked rows are still alive after `num_steps`."""
    schedule: PhaseSchedule

    def to_steps(self, num_epochs: float) -> int:
        """Number of steps in so many epochs; at least one."""
        return _to_steps(num_epochs, self.steps_per_epoch)

    def require_prune(self) -> PruneConfig:
        """The section `prune`, which a phase with a graph has."""
        assert self.prune is not None, "the plan was made without a graph"
        return self.prune


def plan_phase(config: Config, graph: Graph | None, num_samples: int) -> PhasePlan:
    """The plan of a phase.

    Args:
        graph: what is pruned; None for plain training.
        num_samples: size of the training set.

    Raises:
        ConfigError: if the section that the phase needs is missing.
    """
    phase, batch_size = phase_of(config, graph), config.data.global_batch_size
    prune = pruning_of(config) if graph else None
    steps_per_epoch = num_samples / batch_size
    num_steps = _to_steps(phase.num_epochs, steps_per_epoch)
    extension_steps = round(prune.max_extension_epochs * steps_per_epoch) if prune else 0
    schedule = phase_schedule(phase, batch_size, num_steps, extension_steps)
    return PhasePlan(phase, prune, batch_size, steps_per_epoch, num_steps, num_steps + extension_steps, schedule)


def check_data(config: Config, train_data: ImageSource, num_ranks: int) -> None:
    """Refuse data of other classes, and batches with less than one sample for a rank."""
    if train_data.num_classes != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes: received {config.model.num_classes}, "
            f"expected {train_data.num_classes} as in data.source {config.data.source}"
        )
    num_parts = num_ranks * config.training.gradient_accumulation_steps
    if config.data.global_batch_size < num_parts:
        raise ConfigError(
            f"data.global_batch_size: received {config.data.global_batch_size}, expected at least one sample for each "
            f"of the {num_ranks} ranks in each of {config.training.gradient_accumulation_steps} accumulation steps"
        )


def check_images(model: keras.Model, source: ImageSource) -> None:
    """Refuse images of another shape than the model takes."""
    expected, received = model.input_shape[1:], source.first_images(1).shape[1:]
    if any(wanted not in (None, found) for wanted, found in zip(expected, received, strict=True)):
        raise ConfigError(
            f"model.name: {model.name} takes images of height, width and channels {expected}, but those of data.source "
            f"are {received}; give another model or other data"
        )


def model_for_training(model: keras.Model, graph: Graph | None, config: Config, cluster: Cluster) -> keras.Model:
    """The model flat, with the graph's compactors in it, in the configured precision; itself where it is like that."""
    model = insert_compactors(model, graph) if graph else flatten(model)
    model = with_precision(model, config.training.precision)
    if config.training.sync_batch_norm:
        model = with_sync_batch_norm(model, cluster)
    return model


def _to_steps(num_epochs: float, steps_per_epoch: float) -> int:
    return max(1, round(num_epochs * steps_per_epoch))
