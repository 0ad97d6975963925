"""What the commands have in common: options, reading the configuration, the console."""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from resrep_dist.distributed.environment import launched_rank
from resrep_dist.errors import UserError
from resrep_dist.models.result_folder import NAMES, current_folder

KEYS = "Every key of a configuration is described in resrep_dist/config."
"""Where the keys of a configuration are described, for the end of a help text."""


def add_command(commands: Any, name: str, summary: str, examples: str, notes: str = "") -> argparse.ArgumentParser:
    """Add a command whose help ends with examples.

    Args:
        commands: The subparsers of the command line.
        name: Name of the command.
        summary: What it does, in a line.
        examples: Command lines, one a line.
        notes: Text after the examples.
    """
    lines = [f"  {line.strip()}" for line in examples.strip().splitlines()]
    epilog = "\n".join(["examples:", *lines, *(["", notes] if notes else [])])
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_config(parser: argparse.ArgumentParser, default: Path | None = None, default_name: str = "") -> None:
    """Add the argument for a configuration, and the option that changes its settings.

    Args:
        parser: The parser of a command.
        default: File that is used if the user gives none. None if the user must give one.
        default_name: Description of `default` for the help.
    """
    if default is None:
        parser.add_argument("config", help="a YAML file")
    else:
        parser.add_argument(
            "config", nargs="?", default=default, help=f"a YAML file, before any option (default: {default_name})"
        )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the option that changes settings of a configuration."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="a setting in place of the file's, as in train.num_epochs=10; may be given several times",
    )


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add the option that gives a missed target and a broken model exit codes of their own."""
    parser.add_argument(
        "--strict", action="store_true", help="exit code 9 if the target is missed, 10 if a model is broken"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that train; `run_training` reads them."""
    add_strict(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress: warnings, errors and the final table only")
    parser.add_argument(
        "--accept-changed-data", action="store_true", help="resume although the data is not that of the checkpoints"
    )


def positive(text: str) -> int:
    """Parse the value of an option that must be an integer of at least 1.

    Raises:
        ValueError: If the text is not an integer.
        argparse.ArgumentTypeError: If the number is less than 1.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"received {text}, expected 1 or more")
    return number


def positive_number(text: str) -> float:
    """Parse the value of an option that must be a number greater than 0.

    Raises:
        argparse.ArgumentTypeError: If it is not, or is not finite.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"received {text}, expected a number greater than 0, such as 20")
    return number


def config_of(options: argparse.Namespace, *, to_start: bool = True) -> Any:
    """Read the configuration that the user has given, see `add_config`.

    Args:
        options: The parsed command line.
        to_start: See `load_config`.

    Raises:
        ConfigError: If it cannot be read or is not valid.
    """
    from resrep_dist.config import load_config

    return load_config(options.config, options.overrides, to_start=to_start)


def start_terminal(is_quiet: bool = False) -> Any:
    """Set up the log and return the console. Imports TensorFlow.

    Args:
        is_quiet: True to show only warnings and errors of the log.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from resrep_dist.monitoring.monitor import configure_logging, make_console

    console = make_console()
    configure_logging(console, launched_rank() == 0, is_quiet)
    return console


def model_file(path: Path) -> Path:
    """Return the model file in the folder of a run or another folder; a file or a SavedModel's folder itself.

    Raises:
        UserError: If there is none.
    """
    path = current_folder(path)
    if path.is_dir() and not (path / "saved_model.pb").exists():
        candidates = [folder / "model.h5" for folder in (path, *(current_folder(path / name) for name in NAMES))]
        path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    if not path.exists():
        raise UserError(f"model {path}: no such file; give a model file or a folder with model.h5")
    return path
