"""What a phase of a run is made of: its section of the configuration, its data, its model."""

from resrep_dist.cluster import Cluster
from resrep_dist.compactor import insert_compactors
from resrep_dist.config import Config, PhaseConfig
from resrep_dist.data.source import ImageSource
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph, flatten
from resrep_dist.layer_replacement import with_precision
from resrep_dist.sync_batch_norm import with_sync_batch_norm

from tensorflow import keras


def phase_of(config: Config, graph: Graph | None) -> PhaseConfig:
    """The section of the configuration that says how long and at what rate."""
    phase = config.train if graph or config.prune is None else config.base
    if phase is None:
        raise ConfigError("base: missing; training without a graph needs the section `base`")
    return phase


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


def model_for_training(model: keras.Model, graph: Graph | None, config: Config, cluster: Cluster) -> keras.Model:
    """The model flat, with the graph's compactors in it, in the configured precision; itself where it is like that."""
    model = insert_compactors(model, graph) if graph else flatten(model)
    model = with_precision(model, config.training.precision)
    if config.training.sync_batch_norm:
        model = with_sync_batch_norm(model, cluster)
    return model
