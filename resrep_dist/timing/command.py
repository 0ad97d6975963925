"""The command of a bundle: `python measure.py`."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .bundle import BundleFiles, read_bundle
from .machine import visible_cores
from .measuring import MAX_ROUNDS, Progress, measure
from .runtimes import TimingError, require_runtime
from .summary import summary

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 15.0


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Measure the machine; return the exit code.

    Args:
        folder: The bundle.
        arguments: Arguments of the command; those of the process if None.
    """
    parser = argparse.ArgumentParser(
        description="Measure how long the layers of a model take on this machine by their widths."
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of the runtime (default: all cores, or "
                        "what `resrep measure --bundle` was told)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=folder / "costs.json", metavar="FILE", help="the table")
    parser.add_argument("--max-rounds", type=_positive, default=MAX_ROUNDS, metavar="N",
                        help=f"rounds after which a median is as it is (default: {MAX_ROUNDS})")  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _measure(folder, options)
    except TimingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _measure(folder: Path, options: argparse.Namespace) -> None:
    bundle = read_bundle(folder)
    require_writable(options.output)
    versions = {**bundle.versions, **require_runtime(bundle.task.runtime)}
    num_threads = options.threads or bundle.num_threads or visible_cores()
    files = BundleFiles(bundle, num_threads)
    table = measure(
        bundle.task, files, num_threads=num_threads, versions=versions, progress=progress_lines(),
        max_rounds=options.max_rounds,
    )  # fmt: skip
    try:
        options.output.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise _not_writable(options.output, error) from None
    for heading, text in summary(table):
        _log.info("%s", f"{heading} {text}".strip())
    _log.info("File: %s", options.output)


def require_writable(output: Path) -> None:
    """Check before minutes of measuring that a file can be written, and make its folder.

    Args:
        output: The file. What it holds stays.

    Raises:
        TimingError: If it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        is_new = not output.exists()
        with output.open("a"):
            pass
        if is_new:
            output.unlink()
    except OSError as error:
        raise _not_writable(output, error) from None


def _not_writable(output: Path, error: OSError) -> TimingError:
    return TimingError(f"--output {output}: cannot be written ({error.strerror}); give another")


def progress_lines() -> Progress:
    """Return a progress that logs what begins, and every few seconds how far it is."""
    said, last = "", 0.0

    def progress(text: str, done: int, total: int) -> None:
        nonlocal said, last
        what, now = text.partition(":")[0], time.monotonic()
        if what != said:
            said, last = what, now
            _log.info("%s, %d of them.", what.capitalize(), total)
        elif now - last > _SECONDS_BETWEEN_LINES:
            last = now
            _log.info("%s, %d of %d done.", text, done, total)

    return progress


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received {text}, expected a whole number from 1 on")
    return int(text)
