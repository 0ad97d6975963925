"""Removes known lines from what libraries write past Python's own standard error."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def without_lines(patterns: Sequence[str]) -> Iterator[None]:
    """Remove lines from the standard error, also from what libraries write and what a crash leaves behind.

    Args:
        patterns: Basic regular expressions; a line with any of them is removed.
    """
    sys.stderr.flush()
    original = os.dup(2)
    expressions = [argument for pattern in patterns for argument in ("-e", f"/{pattern}/d")]
    try:
        # A process of its own, so that the last words of a crash are printed too.
        sieve = subprocess.Popen(["sed", "-u", *expressions], stdin=subprocess.PIPE, stdout=original)
    except OSError:  # a system without sed only has more lines
        os.close(original)
        yield
        return
    assert sieve.stdin is not None
    os.dup2(sieve.stdin.fileno(), 2)
    sieve.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)
        os.close(original)
        sieve.wait()
