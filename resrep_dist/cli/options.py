"""What the commands share: options, reading the configuration, opening the terminal."""

import argparse
import logging
from pathlib import Path
from typing import Any

from resrep_dist.distributed.environment import launched_rank


def add_config(parser: argparse.ArgumentParser, default: Path | None = None, default_name: str = "") -> None:
    """Let the user name a configuration, or leave it at the default, and change its settings."""
    if default is None:
        parser.add_argument("config", help="a YAML file")
    else:
        parser.add_argument(
            "config", nargs="?", default=default, help=f"a YAML file, before any option (default: {default_name})"
        )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let the user change settings of a configuration."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="as in train.num_epochs=10",
    )


def positive(text: str) -> int:
    """The type of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"received {text}, expected 1 or more")
    return number


def config_of(options: argparse.Namespace) -> Any:
    """The configuration that `add_config` let the user name."""
    from resrep_dist.config import load_config

    return load_config(options.config, options.overrides)


def start_terminal(is_quiet: bool = False) -> Any:
    """The console, with the log set up on it; imports TensorFlow."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from resrep_dist.monitoring.monitor import configure_logging, make_console

    console = make_console()
    configure_logging(console, launched_rank() == 0, is_quiet)
    return console
