"""The command `resrep measure`: a table of the times of a model's layers by their widths."""

import argparse
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resrep_dist.cli.options import KEYS, add_command, add_config, config_of, positive, start_terminal
from resrep_dist.errors import UserError

from rich.markup import escape

_log = logging.getLogger(__name__)


def add_measure_command(commands: Any) -> None:
    """Add the command `measure`.

    Args:
        commands: The subparsers of the command line.
    """
    measure = add_command(
        commands, "measure", "how long a model's layers take here by their widths, for prune.target.latency_fraction",
        """resrep measure mine.yaml --runtime onnx --output costs.json
        resrep measure mine.yaml --runtime tflite --threads 1 --bundle phone""",
        f"A folder of --bundle is copied to another machine and run there by `python measure.py`.\n{KEYS}",
    )  # fmt: skip
    add_config(measure)
    measure.add_argument(
        "--runtime", required=True, choices=("keras", "tflite", "onnx"), help="what will run the slim model"
    )
    measure.add_argument("--threads", type=positive, metavar="N", help="threads of the runtime (default: all cores)")
    measure.add_argument("--batch", type=positive, default=1, metavar="N", help="images in a batch (default: 1)")
    result = measure.add_mutually_exclusive_group(required=True)
    result.add_argument("--output", type=Path, metavar="FILE", help="the table, a file of JSON")
    result.add_argument(
        "--bundle", type=Path, metavar="DIR",
        help="measure nothing here; write a folder that measures another machine, with numpy and the runtime alone",
    )  # fmt: skip
    measure.set_defaults(command=_measure)


def _measure(options: argparse.Namespace) -> int:
    config = config_of(options, to_start=False)
    if config.prune is None:
        raise UserError(f"{options.config}: no section `prune`; it says which layers can get narrower")
    console = start_terminal()
    from resrep_dist.benchmark.bundle import write_bundle
    from resrep_dist.benchmark.measure import measure_costs
    from resrep_dist.distributed.environment import visible_cores
    from resrep_dist.timing.command import require_writable
    from resrep_dist.timing.runtimes import TimingError
    from resrep_dist.timing.summary import summary

    if options.bundle:
        with _progress(console) as progress:
            num_files = write_bundle(config, options.runtime, options.threads, options.batch, options.bundle, progress)
        size_bytes = sum(file.stat().st_size for file in options.bundle.rglob("*") if file.is_file())
        console.print(
            f"{options.bundle} ({size_bytes / 1e6:.0f} MB): {num_files} layers and models. Copy it to the other "
            "machine and run `python measure.py` in it.",
            markup=False,
        )
        return 0
    try:
        require_writable(options.output)
    except TimingError as error:
        raise UserError(str(error)) from None
    with _progress(console) as progress:
        table = measure_costs(config, options.runtime, options.threads or visible_cores(), options.batch, progress)
    table.write(options.output)
    for heading, text in summary(dataclasses.asdict(table)):
        console.print(f"[bold]{heading}[/bold] {escape(text)}".removeprefix("[bold][/bold] "))
    console.print(f"File: {options.output}", markup=False)
    return 0


@contextlib.contextmanager
def _progress(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows on a terminal how far something is, and elsewhere logs what begins."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        said: set[str] = set()

        def progress(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total)
            what = text.partition(":")[0]
            if not console.is_terminal and what not in said:
                said.add(what)
                _log.info("%s, %d of them.", what.capitalize(), total)

        yield progress
