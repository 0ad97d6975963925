"""Removes the lines that TensorFlow prints while it is imported and that no setting of its own silences."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from resrep_dist.monitoring.quiet import without_lines

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
                with without_lines(_LINES):
                    execute(module)

            loader.exec_module = execute_quietly
        return spec


def quiet_tensorflow() -> None:
    """Remove known lines from what the import of TensorFlow prints, once it is imported in this process."""
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _QuietTensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietTensorFlow())
