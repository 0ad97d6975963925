"""Runs a training for the commands that start one, and prints its result. Imports TensorFlow."""

import argparse
from pathlib import Path

from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.reporting.problems import require_success
from resrep_dist.reporting.table import print_report
from resrep_dist.runs.train import train

from rich.console import Console


def run_training(
    config: Config,
    options: argparse.Namespace,
    workdir: Path,
    cluster: Cluster,
    console: Console,
    newest_of: Path | None = None,
) -> int:
    """Train, and print the table of the result on rank 0.

    Args:
        config: The configuration of the run.
        options: what `add_running` adds to the command line.
        workdir: Folder of the run.
        cluster: The ranks, which are shut down at the end.
        console: Where the table is printed.
        newest_of: See `train`.

    Returns:
        The exit code.

    Raises:
        TargetMissedError: With `strict`, if the target was missed.
        BrokenModelError: With `strict`, if a model is broken.
    """
    shown = None if options.quiet else console
    accepts = options.accept_changed_data
    report = train(config, workdir, cluster, shown, newest_of, accepts_changed_data=accepts)
    if cluster.is_root:
        print_report(console, report, workdir)
    cluster.shutdown()
    if options.strict:
        require_success(report)
    return 0
