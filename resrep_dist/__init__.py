"""ResRep channel pruning of Keras models during Horovod training.

TensorFlow is imported only when a name that needs it is first used, so that the command line can answer
`--help` or refuse a configuration at once.
"""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

# Horovod and kerassurgeon need Keras 2. TensorFlow reads this when `tf.keras` is first used.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if "tensorflow" in sys.modules:
    # Keras 2, as TensorFlow presents it, does not tell its version.
    _keras_version = getattr(sys.modules["tensorflow"].keras, "__version__", "2")
    if not _keras_version.startswith("2"):
        raise ImportError(
            f"TensorFlow was imported before resrep_dist and already uses Keras {_keras_version}; "
            "resrep_dist needs Keras 2. Import resrep_dist first, or set TF_USE_LEGACY_KERAS=1."
        )

_PUBLIC = {
    "ChannelMasks": "keras_callbacks",
    "Checkpoints": "keras_callbacks",
    "Compactor": "compactor",
    "Config": "config",
    "GroupLasso": "compactor",
    "PruningCurves": "keras_callbacks",
    "ResRepOptimizer": "optimizer",
    "Trainer": "trainer",
    "insert_compactors": "compactor",
    "load_config": "config",
    "merge": "merging",
    "merge_convolution": "merging",
    "trace": "graph",
    "with_input_size": "graph",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"resrep_dist.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'resrep_dist' has no attribute '{name}'")
