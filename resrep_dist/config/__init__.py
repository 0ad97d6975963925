"""The configuration of a run: sections, the whole, reading it, and its absolute paths."""

from resrep_dist.config.data_section import DataConfig, RandAugmentConfig
from resrep_dist.config.document import Config
from resrep_dist.config.loading import build_config, load_config
from resrep_dist.config.normalization import ChannelStatistics
from resrep_dist.config.paths import with_absolute_paths, with_real_paths
from resrep_dist.config.schema import (
    CheckpointConfig,
    DistillationConfig,
    LoggingConfig,
    MergeConfig,
    ModelConfig,
    PhaseConfig,
    PruneConfig,
    ShrinkConfig,
    TrainingConfig,
)
from resrep_dist.config.target import TargetConfig

__all__ = [
    "ChannelStatistics",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "LoggingConfig",
    "MergeConfig",
    "ModelConfig",
    "PhaseConfig",
    "PruneConfig",
    "RandAugmentConfig",
    "ShrinkConfig",
    "TargetConfig",
    "TrainingConfig",
    "build_config",
    "load_config",
    "with_absolute_paths",
    "with_real_paths",
]
