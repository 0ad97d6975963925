"""A whole run in its folder: base model, pruning, merge, report."""

import logging
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, with_absolute_paths
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.distributed.launch_checks import check_launch
from resrep_dist.distributed.lease import hold_lease
from resrep_dist.distributed.stopping import StopRequest
from resrep_dist.models.files import load_weights
from resrep_dist.runs.base import obtain_base
from resrep_dist.runs.preparation import prepare
from resrep_dist.runs.results import finish_run, finished_report
from resrep_dist.runs.workdir import with_costs_of_run
from resrep_dist.training.determinism import enable_determinism
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
        newest_of: Folder of another run whose newest state this one starts from, if it has none yet. Refused if that
            run was merged in its training.
        accepts_changed_data: True to resume with other data than before, which is logged.

    Returns:
        The report.

    Raises:
        UserError: If the settings, the data, the model or the hosts do not fit, or another job uses the folder.
        StoppedError: If the run was asked to stop; the checkpoint is written.
    """
    # Checkpoints and TensorBoard keep the paths, which are then used from other current folders.
    config = with_costs_of_run(with_absolute_paths(config), workdir)
    report = cluster.from_root(lambda: finished_report(config, workdir))
    if report is not None:
        return report
    keras.utils.set_random_seed(config.seed)
    enable_determinism(config.training, config.seed)
    check_launch(cluster, workdir)
    where = cluster.description
    _log.info("%s on %s, ranks: %s; results in %s.", config.model.name, config.data.source, where, workdir)
    with hold_lease(workdir, cluster), StopRequest(workdir if cluster.is_root else None) as stop:
        prepared = prepare(config, workdir, cluster, newest_of)
        config, model, graph = prepared.config, prepared.model, prepared.graph
        setting: dict[str, Any] = {"train_data": prepared.train_data, "validation_data": prepared.validation_data}
        setting |= {"cluster": cluster, "workdir": workdir, "console": console}
        setting["accepts_changed_data"] = accepts_changed_data
        if graph:
            obtain_base(model, config, stop, setting)
        elif config.model.weights is not None:
            cluster.from_root(lambda: load_weights(model, Path(str(config.model.weights))))
        Trainer(model, graph, config, **setting).run(stop)
        return cluster.from_root(lambda: finish_run(workdir, prepared.validation_data))
