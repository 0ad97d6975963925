"""The hooks of every run."""

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
    """Create the hooks for curves and progress, for warnings, and for the sample log if it is configured.

    Args:
        config: The configuration of the run.
        graph: What the phase prunes; None for training without pruning.
        title: Name of the phase.
        num_steps: Planned number of steps.
        cluster: The ranks.
        folder: Folder of the phase; None to write nothing.
        sweep_row: See `Curves`.
        console: Where progress is shown; None to show none.

    Raises:
        ConfigError: If a heat map is configured for a group that does not exist.
    """
    if graph:
        check_heat_maps(config.logging, graph)
    # With a teacher the loss of guessing depends on what the teacher says.
    is_plain = config.task == "classification" and not (graph and config.train.distillation)
    guessing = guessing_loss(config.training, config.model.num_classes) if is_plain else None
    curves = folder / "tensorboard" if folder and cluster.is_root else None
    monitor = Monitor(title, curves, console if cluster.is_root else None, num_steps)
    hooks: list[Hook] = [
        Curves(monitor, config.logging, config.data.global_batch_size, sweep_row, graph),
        Health(config.prune if graph else None, guessing),
    ]
    if config.logging.record_samples and folder:
        # Must be the first, since it needs the batches of the data source itself.
        hooks.insert(0, SampleLog(folder / "samples"))
    return hooks
