"""The command `resrep measure`: a table of the times of a model's layers by their widths."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrep_dist.cli.options import KEYS, add_command, add_config, config_of, positive, start_terminal
from resrep_dist.errors import UserError

if TYPE_CHECKING:
    from resrep_dist.graph.latency_table import LatencyTable

_log = logging.getLogger(__name__)
_MAX_ERROR = 0.1


def add_measure_command(commands: Any) -> None:
    """Add the command `measure`.

    Args:
        commands: The subparsers of the command line.
    """
    measure = add_command(
        commands, "measure", "how long a model's layers take here by their widths, for prune.target.latency_fraction",
        """resrep measure mine.yaml --runtime onnx --output costs.json
        resrep measure mine.yaml --runtime tflite --threads 1 --output phone.json""", KEYS,
    )  # fmt: skip
    add_config(measure)
    measure.add_argument(
        "--runtime", required=True, choices=("keras", "tflite", "onnx"), help="what will run the slim model"
    )
    measure.add_argument("--threads", type=positive, metavar="N", help="threads of the runtime (default: all cores)")
    measure.add_argument("--batch", type=positive, default=1, metavar="N", help="images in a batch (default: 1)")
    measure.add_argument("--output", type=Path, required=True, metavar="FILE", help="the table, a file of JSON")
    measure.set_defaults(command=_measure)


def _measure(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    if config.prune is None:
        raise UserError(f"{options.config}: no section `prune`; it says which layers can get narrower")
    console = start_terminal()
    from resrep_dist.benchmark.measure import measure_costs
    from resrep_dist.distributed.environment import visible_cores

    from rich.progress import Progress

    num_threads = options.threads or visible_cores()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        said: set[str] = set()

        def progress(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total)
            what = text.partition(":")[0]
            if not console.is_terminal and what not in said:
                said.add(what)
                _log.info("Measuring %s, %d of them.", what, total)

        table = measure_costs(config, options.runtime, num_threads, options.batch, progress)
    table.write(options.output)
    _print_table(console, table)
    console.print(f"File: {options.output}")
    return 0


def _print_table(console: Any, table: "LatencyTable") -> None:
    from resrep_dist.benchmark.measure import worst_error

    num_times = sum(len(row) for layer in table.layers for row in layer.milliseconds)
    num_layers = sum(len(layer.names) for layer in table.layers)
    console.print(
        f"{table.model}, {table.runtime}, batch {table.batch_size}, {table.num_threads} thread(s): {num_times} times "
        f"of {len(table.layers)} kinds of {num_layers} layers; the base model takes {table.base_ms:.4g} ms.",
        markup=False,
    )
    error = worst_error(table)
    console.print(
        f"{len(table.checks)} whole models of random widths take what the table says within {100 * error:.1f} %, by "
        "which it was scaled."
    )
    if wide := table.wide_spreads:
        console.print(
            f"[bold]Not known well:[/bold] the medians of {len(wide)} of {len(table.layers)} layers, such as "
            f"{wide[0]}, vary by more than {100 * table.spread_bound:.0f} %; measure again when the machine is free."
        )
    if not error <= _MAX_ERROR:
        console.print(
            "[bold]Do not aim by this table:[/bold] the times of whole models are not the sum of their layers' here; "
            "measure again when the machine is free."
        )
