"""The whole configuration: its sections, and checks of values that exclude each other."""

import dataclasses
import io
import itertools
from typing import Annotated, Any

from resrep_dist.config.data_section import DataConfig
from resrep_dist.config.model_names import unknown_model
from resrep_dist.config.normalization import default_normalization
from resrep_dist.config.schema import (
    CheckpointConfig,
    FaultsConfig,
    LoggingConfig,
    MergeConfig,
    ModelConfig,
    PhaseConfig,
    PruneConfig,
    ShrinkConfig,
    TrainingConfig,
)
from resrep_dist.config.tasks import TASKS, TaskName

from annotated_types import Ge, Lt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class Config:
    """A run's configuration: frozen and validated, one attribute for each section.

    `load_config` reads it from YAML; every key with its type and default is in the configuration reference.

    Raises:
        ValidationError: pydantic's, for a wrong type or an impossible value; `load_config` makes a ConfigError of it.
    """

    model: ModelConfig
    """The model."""
    data: DataConfig
    """The data set, batches and augmentation."""
    train: PhaseConfig
    """The pruning phase, or plain training if there is no section `prune`."""
    prune: PruneConfig | None = None
    """What is pruned, and how. None to train the model without pruning, for example a slim one."""
    base: PhaseConfig | None = None
    """Plain training before the pruning phase. None if the model has trained weights, or if there is no section
    `prune`.
    """
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """How the training steps of both phases are computed."""
    shrink: ShrinkConfig = dataclasses.field(default_factory=ShrinkConfig)
    """Whether the model becomes smaller during the pruning phase."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """When checkpoints are written, and how many are kept."""
    faults: FaultsConfig = dataclasses.field(default_factory=FaultsConfig)
    """When a run that makes no progress is ended."""
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    """What is logged, and when."""
    merge: MergeConfig = dataclasses.field(default_factory=MergeConfig)
    """How the slim model is checked."""
    task: TaskName = "classification"
    """What the labels say. `classification`: one class for each image. `multilabel`: yes or no for each class of each
    image. `segmentation`: one class for each pixel. The last two need `data.source` npz or arrays."""
    # 2 * seed + 1 must fit into 32 bits.
    seed: Annotated[int, Ge(0), Lt(1 << 30)] = 0
    """Seed of the weights, the order of the samples and their augmentation."""

    def __post_init__(self) -> None:
        if self.data.normalization == "default":
            name: Any = default_normalization(self.data.source, self.model.name)
            object.__setattr__(self, "data", dataclasses.replace(self.data, normalization=name))
        _check_task(self.task, self.model, self.data, self.train)
        for name, phase in (("base", self.base), ("train", self.train)):
            if phase is not None:
                _check_phase(name, phase)
        if self.training.xla and self.training.sync_batch_norm:
            raise ValueError(
                "training.sync_batch_norm: received true together with training.xla, expected one of them: "
                "XLA cannot compile the collectives inside the forward pass"
            )
        if self.prune is not None:
            _check_mask_times(self.prune, self.train)
        if self.base is not None and self.base.distillation is not None:
            raise ValueError("base.distillation: given, but the base model has no teacher; write it below `train`")
        if self.train.distillation is not None and self.prune is None:
            raise ValueError(
                "train.distillation: given without the section `prune`; the teacher is the base model of a run that "
                "prunes"
            )
        _check_shrink(self.shrink, self.prune)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dicts, with all defaults."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """Return the configuration as YAML, with all defaults; `load_config` reads it back to an equal one."""
        stream = io.StringIO()
        yaml = YAML()
        yaml.dump(_with_quotes(self.to_dict()), stream)
        return stream.getvalue()


def _with_quotes(value: Any) -> Any:
    """Put texts that cannot be printed in double quotes: YAML writes some line breaks, such as U+0085, as spaces."""
    if isinstance(value, dict):
        return {key: _with_quotes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_quotes(item) for item in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and not value.isprintable() else value


def _check_task(task: str, model: ModelConfig, data: DataConfig, train: PhaseConfig) -> None:
    if task == "multilabel" and model.num_classes < 1:
        raise ValueError(f"model.num_classes: received {model.num_classes}, expected greater than or equal to 1")
    if task != "multilabel" and model.num_classes < 2:
        raise ValueError(
            f"model.num_classes: received {model.num_classes}, expected greater than or equal to 2; a model of two "
            "classes has two outputs: end it in keras.layers.Dense(2) and set model.num_classes: 2, with the labels 0 "
            "and 1. For a single output with a sigmoid set task: multilabel"
        )
    if task != "classification" and train.distillation is not None:
        raise ValueError(
            f"train.distillation: given with task {task}; the distance to the teacher is one of an image's classes; "
            "leave it out"
        )
    for name in ("rand_augment", "mixup_alpha", "cutmix_alpha"):
        if task != "classification" and getattr(data, name):
            raise ValueError(
                f"data.{name}: given with task {task}; it is for one class per image, so that no label or mask has to "
                "follow the pixels; leave it out"
            )
    served = TASKS[task].sources
    if served is not None and data.source not in served:
        raise ValueError(
            f"task: received '{task}', which needs {TASKS[task].labels}, but data.source {data.source} has one class "
            f"for each image; expected data.source {' or '.join(served)}, or Keras' own `fit` with "
            "resrep_dist.ChannelMasks, as in examples/unet_segmentation.py"
        )


def _check_phase(name: str, phase: PhaseConfig) -> None:
    if phase.warmup_epochs >= phase.num_epochs:
        raise ValueError(
            f"{name}.warmup_epochs: received {phase.warmup_epochs:g}, "
            f"expected less than {name}.num_epochs ({phase.num_epochs:g})"
        )
    milestones = phase.milestone_epochs
    if phase.schedule == "cosine":
        if milestones:
            raise ValueError(
                f"{name}.milestone_epochs: given, but {name}.schedule is cosine; "
                f"remove it, or set {name}.schedule: step"
            )
        return
    if not milestones:
        raise ValueError(f"{name}.milestone_epochs: none given, expected at least one, as {name}.schedule is step")
    edges = (phase.warmup_epochs, *milestones, phase.num_epochs)
    if any(later <= earlier for earlier, later in itertools.pairwise(edges)):
        raise ValueError(
            f"{name}.milestone_epochs: received {', '.join(f'{epochs:g}' for epochs in milestones)}, expected rising "
            f"numbers between {name}.warmup_epochs ({phase.warmup_epochs:g}) and {name}.num_epochs "
            f"({phase.num_epochs:g})"
        )


def check_start(config: Config) -> None:
    """Check that a run can start with a configuration: its model has weights, or gets them.

    Args:
        config: The configuration.

    Raises:
        ValueError: If not. The message has the lines to add.
    """
    if config.prune is None:
        if config.base is not None:
            raise ValueError(
                "base: given without the section `prune`, which it prepares for; `train` alone is expected"
            )
        return
    is_file, weights = config.model.name.startswith("file:"), config.model.weights
    if config.base and is_file:
        raise ValueError(
            f"base: given, but model.name {config.model.name} is a file with its weights, which `base` would train "
            "again; remove the section `base`"
        )
    expected = "expected one of them: `model.weights` names a trained model, `base` says how to train one"
    if config.base and weights is not None:
        raise ValueError(f"model.weights, base: both are given; {expected}")
    if not (config.base or is_file or weights is not None):
        # A name that is no model's comes first: `base` cannot help it.
        if message := unknown_model(config.model.name):
            raise ValueError(message)
        raise ValueError(
            f"model.weights, base: neither is given; {expected}. Add to `model`: `weights: trained.h5`, or to the "
            f"file: `base: {{num_epochs: {config.train.num_epochs:g}, learning_rate: 0.1}}`"
        )


def _check_shrink(shrink: ShrinkConfig, prune: PruneConfig | None) -> None:
    if shrink.mode == "off":
        return
    if prune is None:
        raise ValueError(f"shrink.mode: received '{shrink.mode}' without the section `prune`; expected 'off'")
    if prune.rule != "radial":
        raise ValueError(
            f"shrink.mode: received '{shrink.mode}' with prune.rule '{prune.rule}', whose rows are never exactly zero; "
            "expected prune.rule 'radial', or shrink.mode 'off'"
        )


def _check_mask_times(prune: PruneConfig, train: PhaseConfig) -> None:
    if prune.mask_start_epochs == "auto":
        return
    last_mask_epochs = (prune.mask_stop_fraction or 1.0) * train.num_epochs
    if prune.mask_start_epochs >= last_mask_epochs:
        raise ValueError(
            f"prune.mask_start_epochs: received {prune.mask_start_epochs:g}, expected less than "
            f"the {last_mask_epochs:g} epochs in which masks may change, or no mask is ever chosen"
        )
