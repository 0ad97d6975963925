"""A whole run in its folder: base model, pruning, merge, report."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, with_absolute_paths
from resrep_dist.data.loading import load_sources
from resrep_dist.data.source import ImageSource, Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.launch_checks import check_launch
from resrep_dist.distributed.lease import hold_lease
from resrep_dist.distributed.stopping import StopRequest
from resrep_dist.errors import ModelError
from resrep_dist.graph import Graph, trace
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model, load_weights, save_model
from resrep_dist.models.input_scale import scaling_layer
from resrep_dist.monitoring.curves import check_heat_maps
from resrep_dist.pruning.targets import require_prunable, require_reachable_target
from resrep_dist.runs.base import obtain_base
from resrep_dist.runs.results import finish_run, finished_report
from resrep_dist.runs.start import copy_newest_state
from resrep_dist.runs.workdir import earlier_choices, open_workdir
from resrep_dist.training.determinism import enable_determinism
from resrep_dist.training.phase import check_images, plan_phase, pruning_of
from resrep_dist.training.trainer import Trainer

from rich.console import Console
from tensorflow import keras

_log = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: Path,
    cluster: Cluster,
    console: Console | None,
    newest_of: Path | None = None,
    *,
    accepts_changed_data: bool = False,
) -> dict[str, Any]:
    """Do everything in `workdir` that is not done yet: base training, pruning, merge, report. A collective.

    Args:
        config: The configuration of the run.
        workdir: Folder of the run.
        cluster: The ranks.
        console: Where progress is shown; None to show none.
        newest_of: Folder of another run whose newest state this one starts from, if it has none yet.
        accepts_changed_data: True to resume with other data than before, which is logged.

    Returns:
        The report.

    Raises:
        UserError: If the settings, the data, the model or the hosts do not fit, or another job uses the folder.
        StoppedError: If the run was asked to stop; the checkpoint is written.
    """
    # Checkpoints and TensorBoard keep the paths, which are then used from other current folders.
    config = with_absolute_paths(config)
    report = cluster.from_root(lambda: finished_report(config, workdir))
    if report is not None:
        return report
    keras.utils.set_random_seed(config.seed)
    enable_determinism(config.training, config.seed)
    check_launch(cluster, workdir)
    _log.info("%s on %s, %s; results in %s.", config.model.name, config.data.source, cluster.description, workdir)
    with hold_lease(workdir, cluster), StopRequest(workdir if cluster.is_root else None) as stop:
        # On every rank, so that the others do not wait forever if something is missing on one host.
        model = cluster.everywhere(lambda: build_model(config.model))
        graph = trace(model, config.prune.exclude, config.prune.residual_groups) if config.prune else None
        if graph and config.prune:
            # Checked now, so that no base model is trained in vain.
            require_prunable(model.name, graph)
            require_reachable_target(graph, config.prune)
            check_heat_maps(config.logging, graph)
        train_data, validation_data = cluster.everywhere(lambda: load_sources(config.data, config.model))
        if graph:
            config = _with_numbers(config, graph, len(train_data), workdir, cluster)
        cluster.from_root(lambda: open_workdir(config, workdir))
        if newest_of is not None:
            cluster.from_root(lambda: copy_newest_state(newest_of, workdir))
        cluster.everywhere(lambda: check_images(model, train_data))
        if cluster.is_root:
            _warn_if_scaled_twice(model, config, train_data)
        cluster.from_root(lambda: _check_file(model, workdir))
        setting = {
            "train_data": train_data,
            "validation_data": validation_data,
            "cluster": cluster,
            "workdir": workdir,
            "console": console,
            "accepts_changed_data": accepts_changed_data,
        }
        if graph:
            obtain_base(model, config, stop, setting)
        elif config.model.weights is not None:
            cluster.from_root(lambda: load_weights(model, Path(str(config.model.weights))))
        Trainer(model, graph, config, **setting).run(stop)
        return cluster.from_root(lambda: finish_run(workdir, validation_data))


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


def _with_numbers(config: Config, graph: Graph, num_samples: int, workdir: Path, cluster: Cluster) -> Config:
    """Return the configuration with a number in place of each `auto`: those of an earlier start, or new ones."""
    prune = dataclasses.replace(pruning_of(config), **cluster.from_root(lambda: earlier_choices(config, workdir)))
    plan = plan_phase(dataclasses.replace(config, prune=prune), graph, num_samples)
    masks = plan.require_masks()
    if masks.chosen:
        _log.info("Chosen: %s.", masks.choices())
    if config.base:
        # Said before the base is trained, too.
        for problem in masks.problems():
            _log.warning("%s", problem)
    return plan.resolved(config)


def _check_file(model: keras.Model, workdir: Path) -> None:
    """Check before training that the model can be loaded from its own file, as it will be at the end."""
    path = workdir / ".untrained.h5"
    try:
        save_model(model, path)
        load_model(path)
    except ModelError as error:
        raise ModelError(f"model {model.name}: it could not be loaded from its own file: {error}") from None
    finally:
        path.unlink(missing_ok=True)
