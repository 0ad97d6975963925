"""A run's configuration: what it may hold (`schema.py`, `document.py`) and how it is read (`loading.py`,
`paths.py`)."""

from resrep_dist.config.document import Config
from resrep_dist.config.loading import build_config, load_config
from resrep_dist.config.paths import with_absolute_paths, with_real_paths
from resrep_dist.config.schema import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    MergeConfig,
    ModelConfig,
    PhaseConfig,
    PruneConfig,
    ShrinkConfig,
    TrainingConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LoggingConfig",
    "MergeConfig",
    "ModelConfig",
    "PhaseConfig",
    "PruneConfig",
    "ShrinkConfig",
    "TrainingConfig",
    "build_config",
    "load_config",
    "with_absolute_paths",
    "with_real_paths",
]
