"""Removes the lines that TensorFlow prints while it is imported and that no setting of its own silences."""

import contextlib
import importlib.abc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# TensorFlow 2.19 and later print these before TF_CPP_MIN_LOG_LEVEL is looked at (issue 100442 of TensorFlow).
_LINES = ("^WARNING: All log messages before absl::InitializeLog", "oneDNN custom operations are on")


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Finds TensorFlow once, with a loader that filters the standard error."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_quietly(module: ModuleType) -> None:
                with _without(_LINES):
                    execute(module)

            loader.exec_module = execute_quietly
        return spec


def quiet_tensorflow() -> None:
    """Remove known lines from what the import of TensorFlow prints, once it is imported in this process."""
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _QuietTensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietTensorFlow())


@contextlib.contextmanager
def _without(patterns: Sequence[str]) -> Iterator[None]:
    """Remove lines from the standard error, also from what libraries write and what a crash leaves behind."""
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
