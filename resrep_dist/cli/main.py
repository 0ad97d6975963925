"""The command line. A command imports TensorFlow only after it has read its configuration."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence

from resrep_dist.cli.benchmark_commands import add_benchmark_commands
from resrep_dist.cli.first_commands import add_first_commands
from resrep_dist.cli.measure_command import add_measure_command
from resrep_dist.cli.options import KEYS
from resrep_dist.cli.quiet_import import quiet_tensorflow
from resrep_dist.cli.run_commands import add_run_commands
from resrep_dist.distributed.environment import is_launched, launched_rank, leave
from resrep_dist.errors import HostError, RankLostError, StoppedError, one_line
from resrep_dist.version import __version__

_MAX_MESSAGE = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Errors of this package are printed as one line on rank 0.

    Args:
        arguments: The command line without the program's name. None for that of the process.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    # Only here, since a user's own program decides itself about TensorFlow's messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet_tensorflow()
    try:
        code = options.command(options)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _explain(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and is_launched():
        leave(code)
    return code


def _explain(error: Exception) -> int:
    code = getattr(error, "exit_code", None)
    if code is not None:
        if launched_rank() == 0 or getattr(error, "is_of_one_rank", False):
            kind = "" if isinstance(error, StoppedError) else "error: "
            # One line, since the message may have names from the user's files.
            print(f"resrep: {kind}{one_line(error, _MAX_MESSAGE)}", file=sys.stderr, flush=True)
        else:
            # Rank 0 prints it. If this rank ended first, the launcher would end rank 0 before that.
            time.sleep(2)
        return int(code)
    message = str(error)
    if "nccl" in message and "invalid usage" in message:
        print(
            f"resrep: error: rank {launched_rank()}: NCCL refuses to start ({message.splitlines()[0][-160:]}); "
            "NCCL_DEBUG=WARN, set for the launch, lets it say why",
            file=sys.stderr,
        )
        return HostError.exit_code
    if "Horovod" in message or "HorovodInternalError" in type(error).__name__:
        # The watch over the other ranks names the lost one and ends this process, if it can, in this time.
        time.sleep(4)
        print(
            f"resrep: error: rank {launched_rank()} lost another rank ({message.splitlines()[0][:160]}); "
            "start the same command again to resume from the last checkpoint",
            file=sys.stderr,
        )
        return RankLostError.exit_code
    traceback.print_exc()
    return 1


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of the command line; each command sets `command` to the function that runs it."""
    parser = argparse.ArgumentParser(
        prog="resrep",
        description="Prune convolutional networks while they train, on many processes or one.",
        epilog=f"examples:\n  resrep prune mine.keras --data photos --target 0.5\n"
        f"  resrep inspect configs/digits_resnet20.yaml\n"
        f"  resrep train configs/digits_resnet20.yaml --workdir runs/digits\n  resrep train --help\n\n{KEYS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"resrep {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_first_commands(commands)
    add_run_commands(commands)
    add_benchmark_commands(commands)
    add_measure_command(commands)
    return parser
