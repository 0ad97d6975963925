"""What a phase of a run consists of: its section of the configuration, its plan, its data, its model."""

import dataclasses
import logging
from typing import Any

from resrep_dist.config import Config, PhaseConfig, PruneConfig
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph, flatten
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.layers.replacement import with_precision
from resrep_dist.layers.sync_batch_norm import with_sync_batch_norm
from resrep_dist.pruning.planning import plan_masks
from resrep_dist.pruning.schedule import MaskSchedule
from resrep_dist.training.schedules import PhaseSchedule, phase_schedule

import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)


def phase_of(config: Config, graph: Graph | None) -> PhaseConfig:
    """Return the section of the configuration that sets the length and the learning rate of a phase.

    Args:
        config: The configuration of the run.
        graph: What the phase prunes; None for training without pruning.

    Raises:
        ConfigError: If the section is missing.
    """
    phase = config.train if graph or config.prune is None else config.base
    if phase is None:
        raise ConfigError("base: missing; training without a graph needs the section `base`")
    return phase


def pruning_of(config: Config) -> PruneConfig:
    """Return the section `prune`, which a phase with a graph needs.

    Args:
        config: The configuration of the run.

    Raises:
        ConfigError: If the section is missing.
    """
    if config.prune is None:
        raise ConfigError("prune: missing; expected with a graph, since the section says what to prune")
    return config.prune


def phase_seed(config: Config, is_pruning: bool) -> int:
    """Return the seed of a phase: base training and pruning use different orders of the samples.

    Args:
        config: The configuration of the run.
        is_pruning: True for a phase that prunes.
    """
    return 2 * config.seed + is_pruning


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """The settings of a phase, with its length in steps and its learning rate."""

    phase: PhaseConfig
    """Length, learning rate, momentum and weight decay."""
    global_batch_size: int
    """Number of samples per step, over all ranks."""
    steps_per_epoch: float
    """Number of steps per epoch; not rounded."""
    num_steps: int
    """Planned number of steps."""
    max_steps: int
    """Number of steps with the full extension, which is made while masked rows are still alive."""
    schedule: PhaseSchedule
    """Learning rate of each step."""
    seed: int
    """Seed of the order of the samples, their augmentation, and the random numbers of layers."""
    task: str = "classification"
    """What the labels say; see `Config.task`."""
    masks: MaskSchedule | None = None
    """When masks change, and the penalty; None for a phase that does not prune."""

    def resolved(self, config: Config) -> Config:
        """Return a configuration with the numbers of this plan in place of each `auto`.

        Args:
            config: The configuration that the plan was made from.
        """
        return dataclasses.replace(config, prune=self.masks.config) if self.masks else config

    def ends_epochs(self, step: int, num_epochs: float) -> bool:
        """Return True if a step is the last of a number of epochs, or of a multiple of it.

        Args:
            step: Number of steps made, with this one.
            num_epochs: The number, which may be a fraction.
        """
        interval_steps = num_epochs * self.steps_per_epoch
        return int(step / interval_steps) > int((step - 1) / interval_steps)

    def require_masks(self) -> MaskSchedule:
        """Return the schedule of the masks, which the plan of a phase with a graph has."""
        assert self.masks is not None, "the plan was made without a graph"
        return self.masks


def plan_phase(config: Config, graph: Graph | None, num_samples: int) -> PhasePlan:
    """Create the plan of a phase.

    Args:
        config: The configuration of the run.
        graph: What the phase prunes; None for training without pruning.
        num_samples: Size of the training set.

    Raises:
        ConfigError: If a section that the phase needs is missing.
    """
    phase, batch_size = phase_of(config, graph), config.data.global_batch_size
    prune = pruning_of(config) if graph else None
    steps_per_epoch = num_samples / batch_size
    num_steps = _to_steps(phase.num_epochs, steps_per_epoch)
    extension_steps = round(prune.max_extension_epochs * steps_per_epoch) if prune else 0
    schedule = phase_schedule(phase, batch_size, num_steps, extension_steps)
    masks = None
    if graph and prune:
        rates = schedule(tf.range(num_steps)).numpy()
        masks = plan_masks(prune, graph, rates, steps_per_epoch, phase.warmup_epochs)
    seed, max_steps = phase_seed(config, graph is not None), num_steps + extension_steps
    return PhasePlan(phase, batch_size, steps_per_epoch, num_steps, max_steps, schedule, seed, config.task, masks)


def fingerprints(train_data: ImageSource, validation_data: ImageSource) -> dict[str, dict[str, Any]]:
    """Return the fingerprints of both sets, by the names that messages give them.

    Args:
        train_data: The training set.
        validation_data: The validation set.
    """
    return {"training": train_data.fingerprint(), "validation": validation_data.fingerprint()}


def model_for_training(model: keras.Model, graph: Graph | None, config: Config, cluster: Cluster) -> keras.Model:
    """Return the flat model with compactors and the configured precision and batch norm.

    Args:
        model: A functional Keras model.
        graph: Trace of the model; None for training without pruning.
        config: The configuration of the run.
        cluster: The ranks, over which batch norms are synchronized.

    Returns:
        A copy, or the model itself if nothing has to be changed.
    """
    model = insert_compactors(model, graph) if graph else flatten(model)
    model = with_precision(model, config.training.precision)
    if config.training.sync_batch_norm:
        model = with_sync_batch_norm(model, cluster)
    return model


def _to_steps(num_epochs: float, steps_per_epoch: float) -> int:
    return max(1, round(num_epochs * steps_per_epoch))
