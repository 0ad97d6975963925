"""What a run needs before its first step: its model, its data, its settings in numbers, all checked against each other.

Everything that can be refused is refused here, so that no base model is trained in vain.
"""

import dataclasses
import logging
from pathlib import Path

from resrep_dist.checkpoints.same_data import check_data_of_ranks
from resrep_dist.config import Config
from resrep_dist.data.loading import load_sources
from resrep_dist.data.source import ImageSource, Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ModelError
from resrep_dist.graph import Graph, trace
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model, save_model
from resrep_dist.models.input_scale import scaling_layer
from resrep_dist.monitoring.curves import check_heat_maps
from resrep_dist.pruning.goals import agree_on_costs
from resrep_dist.pruning.targets import require_prunable, require_reachable_target
from resrep_dist.runs.start import copy_newest_state
from resrep_dist.runs.workdir import earlier_choices, open_workdir
from resrep_dist.training.phase import fingerprints, plan_phase, pruning_of
from resrep_dist.training.start_checks import check_images, check_loss_and_metrics, note_widths

from tensorflow import keras

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: Config
    """The configuration, with a number in place of each `auto`."""
    model: keras.Model
    """The model, without the weights of a base."""
    graph: Graph | None
    """Trace of the model; None for a run that does not prune."""
    train_data: ImageSource
    """The training set."""
    validation_data: ImageSource
    """The validation set."""


def prepare(config: Config, workdir: Path, cluster: Cluster, newest_of: Path | None = None) -> Prepared:
    """Build and open what a run needs, check it, and open the run's folder. A collective.

    Args:
        config: The configuration of the run.
        workdir: Folder of the run.
        cluster: The ranks.
        newest_of: Folder of another run whose newest state this one starts from, if it has none yet.

    Raises:
        UserError: If the settings, the data and the model do not fit.
    """
    # On every rank, so that the others do not wait forever if something is missing on one host.
    model = cluster.everywhere(lambda: build_model(config.model, config.task))
    agree_on_costs(cluster, config.prune)
    graph = cluster.everywhere(lambda: _checked_graph(model, config))
    train_data, validation_data = cluster.everywhere(lambda: load_sources(config.data, config.model, config.task))
    check_data_of_ranks(cluster, fingerprints(train_data, validation_data))
    if graph:
        config = with_numbers(config, graph, len(train_data), workdir, cluster)
    cluster.from_root(lambda: open_workdir(config, workdir))
    if newest_of is not None:
        cluster.from_root(lambda: copy_newest_state(newest_of, workdir))
    cluster.everywhere(lambda: check_images(model, train_data))
    if cluster.is_root:
        _warn_if_scaled_twice(model, config, train_data)
    cluster.from_root(lambda: check_file(model, workdir))
    if graph:
        cluster.everywhere(lambda: check_loss_and_metrics(model, config))
    return Prepared(config, model, graph, train_data, validation_data)


def _checked_graph(model: keras.Model, config: Config) -> Graph | None:
    """Return the trace of a model that can be pruned to its target; None for a run that does not prune."""
    if config.prune is None:
        return None
    graph = trace(model, config.prune.exclude, config.prune.residual_groups)
    require_prunable(model.name, graph)
    require_reachable_target(graph, config.prune)
    check_heat_maps(config.logging, graph)
    return graph


def _warn_if_scaled_twice(model: keras.Model, config: Config, train_data: ImageSource) -> None:
    """Warn if the model begins by scaling its input, and the data does too."""
    scale, layer = config.data.normalization, scaling_layer(model)
    is_as_it_is = isinstance(train_data, Source) and train_data.mean is None
    if layer is not None and scale != "none" and not is_as_it_is:
        _log.warning(
            "The model begins with %s, which scales the pixels, and data.normalization is %s, which scales them too. "
            "Set data.normalization: none if the model was trained on pixels from 0 to 255.",
            layer,
            scale,
        )


def with_numbers(config: Config, graph: Graph, num_samples: int, workdir: Path, cluster: Cluster) -> Config:
    """Return the configuration with a number in place of each `auto`: those of an earlier start, or new ones.

    Args:
        config: The configuration of this start.
        graph: Trace of the original model.
        num_samples: Size of the training set.
        workdir: Folder of the run.
        cluster: The ranks.
    """
    prune = dataclasses.replace(pruning_of(config), **cluster.from_root(lambda: earlier_choices(config, workdir)))
    plan = plan_phase(dataclasses.replace(config, prune=prune), graph, num_samples)
    masks = plan.require_masks()
    if masks.chosen:
        _log.info("Chosen: %s.", masks.choices())
    if config.base:
        # Said before the base is trained, too.
        for warning in masks.warnings():
            _log.warning("%s", warning)
        note_widths(prune)
    return plan.resolved(config)


def check_file(model: keras.Model, workdir: Path) -> None:
    """Check before training that the model can be loaded from its own file, as it will be at the end.

    Args:
        model: The model.
        workdir: Folder of the run, in which the file is for a moment.

    Raises:
        ModelError: If it cannot, such as one with layers of the user's own.
    """
    path = workdir / ".untrained.h5"
    try:
        save_model(model, path)
        load_model(path)
    except ModelError as error:
        raise ModelError(f"model {model.name}: it could not be written and loaded again: {error}") from None
    finally:
        path.unlink(missing_ok=True)
