"""The hooks that every run has."""

from pathlib import Path

from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.monitoring.curves import Curves, check_heat_maps
from resrep_dist.monitoring.health import Health, guessing_loss
from resrep_dist.monitoring.hooks import Hook
from resrep_dist.monitoring.monitor import Monitor
from resrep_dist.monitoring.samples import SampleLog

from rich.console import Console


def default_hooks(
    config: Config,
    graph: Graph | None,
    title: str,
    num_steps: int,
    *,
    cluster: Cluster,
    folder: Path | None,
    sweep_row: str | None,
    console: Console | None,
) -> list[Hook]:
    """Curves and progress, warnings, and the sample log if it is configured.

    Args:
        graph: what the phase prunes; None for plain training.
        title: of the phase.
        num_steps: its planned length.
        folder: of the phase; None writes nothing.
        sweep_row: see `Curves`.
        console: for progress; None shows none.

    Raises:
        ConfigError: for heat maps of groups that do not exist.
    """
    if graph:
        check_heat_maps(config.logging, graph)
    is_seen = cluster.is_root and folder is not None
    monitor = Monitor(
        title, folder / "tensorboard" if folder and is_seen else None, console if is_seen else None, num_steps
    )
    hooks: list[Hook] = [
        Curves(monitor, config.logging, config.data.global_batch_size, sweep_row),
        Health(config.prune if graph else None, guessing_loss(config.training, config.model.num_classes)),
    ]
    if config.logging.record_samples and folder:
        # The first: it asks the data source's own batches for their samples.
        hooks.insert(0, SampleLog(folder / "samples"))
    return hooks
