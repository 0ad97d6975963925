"""ResRep channel pruning of Keras models during Horovod training.

TensorFlow is imported only when a name that needs it is first used, so that the command line can answer
`--help` or refuse a configuration at once.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from resrep_dist.version import __version__ as __version__

# Horovod and kerassurgeon need Keras 2. TensorFlow reads this when `tf.keras` is first used.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

if "tensorflow" in sys.modules:
    # Keras 2, as TensorFlow presents it, does not tell its version.
    _keras_version = getattr(sys.modules["tensorflow"].keras, "__version__", "2")
    if not _keras_version.startswith("2"):
        raise ImportError(
            f"TensorFlow was imported before resrep_dist and already uses Keras {_keras_version}; "
            "resrep_dist needs Keras 2. Import resrep_dist first, or set TF_USE_LEGACY_KERAS=1."
        )

if TYPE_CHECKING:
    from resrep_dist.config import Config as Config
    from resrep_dist.config import PruneConfig as PruneConfig
    from resrep_dist.config import TargetConfig as TargetConfig
    from resrep_dist.config import build_config as build_config
    from resrep_dist.config import load_config as load_config
    from resrep_dist.data.loading import load_sources as load_sources
    from resrep_dist.data.source import ImageSource as ImageSource
    from resrep_dist.data.source import Source as Source
    from resrep_dist.distributed.cluster import Cluster as Cluster
    from resrep_dist.export.convert import export_model as export_model
    from resrep_dist.export.eight_bits import EightBitExport as EightBitExport
    from resrep_dist.export.eight_bits import export_eight_bits as export_eight_bits
    from resrep_dist.graph import Graph as Graph
    from resrep_dist.graph import trace as trace
    from resrep_dist.graph import with_input_size as with_input_size
    from resrep_dist.layers.compactor import Compactor as Compactor
    from resrep_dist.layers.compactor import GroupLasso as GroupLasso
    from resrep_dist.layers.insertion import insert_compactors as insert_compactors
    from resrep_dist.merging import Certificate as Certificate
    from resrep_dist.merging import compare_in_keras3 as compare_in_keras3
    from resrep_dist.merging import merge as merge
    from resrep_dist.merging import merge_convolution as merge_convolution
    from resrep_dist.models.files import load_model as load_model
    from resrep_dist.models.files import save_model as save_model
    from resrep_dist.monitoring.hooks import Hook as Hook
    from resrep_dist.monitoring.hooks import Watched as Watched
    from resrep_dist.pruning.optimizer import ResRepOptimizer as ResRepOptimizer
    from resrep_dist.runs.library import PruneResult as PruneResult
    from resrep_dist.runs.library import prune as prune
    from resrep_dist.training.keras_callbacks import ChannelMasks as ChannelMasks
    from resrep_dist.training.keras_callbacks import Checkpoints as Checkpoints
    from resrep_dist.training.keras_callbacks import PruningCurves as PruningCurves
    from resrep_dist.training.trainer import Trainer as Trainer

_MODULES = {
    "config": ("Config", "PruneConfig", "TargetConfig", "build_config", "load_config"),
    "data.loading": ("load_sources",),
    "data.source": ("ImageSource", "Source"),
    "distributed.cluster": ("Cluster",),
    "export.convert": ("export_model",),
    "export.eight_bits": ("EightBitExport", "export_eight_bits"),
    "graph": ("Graph", "trace", "with_input_size"),
    "layers.compactor": ("Compactor", "GroupLasso"),
    "layers.insertion": ("insert_compactors",),
    "merging": ("Certificate", "compare_in_keras3", "merge", "merge_convolution"),
    "monitoring.hooks": ("Hook", "Watched"),
    "models.files": ("load_model", "save_model"),
    "pruning.optimizer": ("ResRepOptimizer",),
    "runs.library": ("PruneResult", "prune"),
    "training.keras_callbacks": ("ChannelMasks", "Checkpoints", "PruningCurves"),
    "training.trainer": ("Trainer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *sorted(_MODULE_OF)]

if not TYPE_CHECKING:
    # Not for type checkers: to them every misspelled name would be an `Any`.
    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            return getattr(importlib.import_module(f"resrep_dist.{_MODULE_OF[name]}"), name)
        raise AttributeError(f"module 'resrep_dist' has no attribute '{name}'")
