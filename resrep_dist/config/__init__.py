"""The configuration of a run: its sections (`schema.py`), the whole (`document.py`) and reading it (`loading.py`)."""

from resrep_dist.config.document import Config
from resrep_dist.config.loading import build_config, load_config
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
]
