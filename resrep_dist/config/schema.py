"""The sections of a configuration: frozen, validated dataclasses. Docstrings are the reference that users read."""

from typing import Annotated, Any, Literal

from resrep_dist.config.target import Fraction, TargetConfig

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, field_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[int, Gt(0)]
NotNegative = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NotNegativeFloat = Annotated[float, Ge(0)]
Momentum = Annotated[float, Ge(0), Lt(1)]
Auto = Literal["auto"]


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """The model."""

    name: str
    """Name of a built-in model (the error for an unknown name lists them), `keras:<Name>` for a model of
    keras.applications, `file:<path>` for a Keras file with its weights, or `python:<module>:<function>` for a function
    that is called with `image_size` and `num_classes` and returns a Keras model."""
    num_classes: int
    """Number of classes, which is the number of outputs of the last layer: at least 2, or 1 for a yes or no with `task:
    multilabel`."""
    image_size: Annotated[int, Ge(8)]
    """Height and width of the images, pixels."""
    weights: str | None = None
    """File with the trained weights of the model: a Keras file (.h5, .keras, .weights.h5), or a .safetensors file with
    the names of torchvision or timm. None to start from new weights, or from those of the file in `name`."""


@dataclass(frozen=True, config=_STRICT)
class DistillationConfig:
    """How much the model in training follows the base model, its teacher."""

    weight: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the loss that is the distance to the teacher's outputs. The rest is the loss by the labels."""
    temperature: PositiveFloat = 4.0
    """Divisor of the logits of both models, which makes the probabilities of wrong classes count. 1 for none."""


@dataclass(frozen=True, config=_STRICT)
class PhaseConfig:
    """A phase of training: its length, learning rate and optimizer."""

    num_epochs: PositiveFloat
    """Length of the phase, epochs of the training set."""
    learning_rate: PositiveFloat
    """Peak learning rate for a batch of `reference_batch_size`."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate after the warmup. `cosine`: a half cosine from the peak to zero. `step`: multiplied by
    `milestone_factor` at each of `milestone_epochs`."""
    milestone_epochs: tuple[PositiveFloat, ...] = ()
    """For the schedule `step`: when the learning rate is reduced, epochs from the start of the phase, ascending."""
    milestone_factor: Annotated[float, Gt(0), Lt(1)] = 0.1
    """For the schedule `step`: factor of the learning rate at each milestone."""
    warmup_epochs: NotNegativeFloat = 0.0
    """Length of the linear rise of the learning rate from zero to the peak, epochs, part of `num_epochs`. 0 for no
    warmup."""
    reference_batch_size: Positive | None = None
    """The learning rate is multiplied by global_batch_size / reference_batch_size. None for no scaling."""
    momentum: Momentum = 0.9
    """Momentum of all weights except those of the compactors."""
    weight_decay: NotNegativeFloat = 1e-4
    """Weight decay of all weights except those of compactors, bias and batch norm."""
    weight_average_decay: Annotated[float, Gt(0), Lt(1)] | None = None
    """Decay per step of an exponential moving average (EMA) of the weights, such as 0.999, which is evaluated and
    merged in place of the weights. In step n at most (1 + n) / (10 + n). None for no average."""
    distillation: DistillationConfig | None = None
    """The base model teaches the one that is pruned, for `train` of a run that prunes. None for the labels alone."""


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """How the training steps of both phases are computed."""

    loss: str = "sparse_categorical_crossentropy"
    """Name of a loss in keras.losses, or `package>name` of a registered one. With `task: multilabel` the default stands
    for binary_crossentropy."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of each label that is distributed over all classes, for losses with this option. 0 for no smoothing."""
    class_weights: tuple[NotNegativeFloat, ...] = ()
    """Factor of the loss of a sample by its class, one number per class. Empty for 1 for all classes."""
    metrics: tuple[str, ...] = ()
    """Names of metrics in keras.metrics for each evaluation, in addition to those of the task: top-1 and top-5
    accuracy, mean average precision and F1, or mean IoU and pixel accuracy."""
    gradient_accumulation_steps: Positive = 1
    """Number of micro-batches into which each rank divides its part of a batch to save memory, computed one after the
    other. 1 for no division."""
    gradient_clip_norm: PositiveFloat | None = None
    """Maximum global norm of the averaged gradients, before weight decay, gradient reset and penalty. None for no
    clipping."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    """Precision in which layers compute. Weights, compactor kernels, masks and norms are always float32."""
    xla: bool = False
    """True to compile the forward pass, the backward pass and the update with XLA; the collectives are not compiled."""
    compression: Literal["none", "fp16"] = "none"
    """Type in which gradients are sent to other ranks. `none`: their own. `fp16`: float16; norms, statistics and counts
    are still sent with full precision."""
    sync_batch_norm: bool = False
    """True for batch norm with the statistics of all ranks, which takes two more collectives per batch norm and
    step."""
    deterministic: bool = True
    """True for the same bits in every run on the same ranks. False allows faster operations on GPUs, and layers that
    have no deterministic version there."""


@dataclass(frozen=True, config=_STRICT)
class PruneConfig:
    """What is pruned, and how. Sections are those of the ResRep paper (Ding et al., ICCV 2021)."""

    target_macs_fraction: Fraction | None = None
    """Target for the multiply-adds of the slim model, as a fraction of those of the base model: the short form of
    `target: {macs_fraction: ...}`. None if `target` is given."""
    target: TargetConfig | None = None
    """Target by multiply-adds, parameters or time, in place of `target_macs_fraction`."""
    lasso_strength: PositiveFloat | Auto = "auto"
    """Strength of the group lasso penalty on the rows of the compactors: lambda in section 3.3. `auto`: what takes a
    row of norm 1 that is masked last to zero before the phase ends, or in a tenth of the phase if
    `kept_lasso_strength` is given; at least the paper's 1e-4."""
    kept_lasso_strength: NotNegativeFloat | None = None
    """Strength of the penalty on the rows that are not masked, for the rule `radial`. A row in front of a batch norm
    does not resist the penalty, so with one strength for all the channels that stay become as weak as those that
    die, and in a short phase training suffers. None for `lasso_strength`, as in the paper."""
    compactor_momentum: Momentum = 0.99
    """Momentum of the compactors' kernels."""
    rule: Literal["radial", "paper"] = "radial"
    """Update of masked rows. `radial`: in a straight line to exactly zero. `paper`: the paper's update with momentum,
    which comes close to zero."""
    mask_start_epochs: NotNegativeFloat | Auto = "auto"
    """Epochs of the pruning phase before the first masks are chosen. `auto`: a twentieth of the phase, at most 5
    epochs, after the warmup."""
    mask_interval_steps: Positive | Auto = "auto"
    """Number of steps between two updates of the masks. `auto`: 25 updates until a third of the phase, at most 200
    steps apart."""
    channels_per_update: Positive | Auto = "auto"
    """Maximum number of additional channels masked per update. `auto`: enough that all channels could be masked until a
    third of the phase."""
    mask_stop_fraction: Annotated[float, Gt(0), Le(1)] | None = None
    """Fraction of the pruning phase after which the masks no longer change. None to stop when a row of norm 1 would not
    have enough time left to reach zero."""
    min_channels: Positive = 1
    """Minimum number of channels that every layer keeps."""
    round_to: Positive = 1
    """Widths of the slim model are rounded up to multiples of this number of channels; 4 is fast on CPUs, 8 on GPUs."""
    paper_dead_row_norm: NotNegativeFloat = 1e-5
    """For the rule `paper`: norm up to which a masked row counts as dead. The default is the authors' threshold."""
    ranking: Literal["norm", "norm_per_cost"] = "norm"
    """Order in which channels are masked. `norm`: by the norm of their rows, as in the paper. `norm_per_cost`: by the
    norm divided by what a channel of its group saves of the target's cost, so that costly channels go first."""
    exclude: tuple[str, ...] = ()
    """Names of convolutions that are not pruned."""
    residual_groups: bool = False
    """True if layers whose outputs are added share one mask. False if they are not pruned, as in the paper."""
    min_base_top1: Annotated[float, Ge(0), Le(100)] | Auto = "auto"
    """Minimum top-1 accuracy of the base model on the validation set before its first pruning step, percent, or mean
    average precision or mean IoU of another task; the run is refused below. `auto`: what is clearly better than
    guessing. 0 for no limit."""
    max_extension_epochs: NotNegativeFloat = 10.0
    """Maximum number of epochs by which the pruning phase is extended if masked rows are not dead at its end."""

    def __post_init__(self) -> None:
        if self.kept_lasso_strength is not None and self.rule != "radial":
            raise ValueError(
                f"prune.kept_lasso_strength: received {self.kept_lasso_strength:g} with prune.rule '{self.rule}', "
                "which has one penalty for all rows; expected prune.rule 'radial', or no kept_lasso_strength"
            )
        if (self.target_macs_fraction is None) == (self.target is None):
            received = "neither" if self.target is None else "both"
            raise ValueError(
                f"prune: received {received} of target_macs_fraction and target, expected one of them, as in "
                "target_macs_fraction: 0.5, or target: {latency_fraction: 0.6, costs: costs.json}"
            )

    @property
    def goal(self) -> TargetConfig:
        """The target, whichever way it is given."""
        return self.target or TargetConfig(macs_fraction=self.target_macs_fraction)

    @property
    def dead_row_norm(self) -> float:
        """Norm up to which a masked row counts as dead: 0 for the rule `radial`, which reaches zero."""
        return self.paper_dead_row_norm if self.rule == "paper" else 0.0


@dataclass(frozen=True, config=_STRICT)
class ShrinkConfig:
    """Whether the model becomes smaller during the pruning phase."""

    mode: Literal["off", "exact", "merge"] = "off"
    """What dead channels are removed from. `off`: nothing before the merge. `exact`: the compactors and the layers
    behind them, which does not change what is trained. `merge`: as `exact`, until the target is met and every masked
    row is dead; then the compactors are folded into the layers before them, and the slim model trains on without
    any."""
    min_saved_macs_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Minimum saving for which the model is made smaller, as a fraction of the base model's multiply-adds, since each
    time a new graph is traced. With the default, a ResNet-56 with a target of 0.47 is made smaller at most five
    times."""
    min_saved_steps: NotNegativeFloat = 30.0
    """Minimum saving for which the model is made smaller, in steps of the base model: the saved fraction of its
    multiply-adds, times the number of steps until the phase ends or, with `merge`, until all should be pruned. Building
    and tracing a smaller model takes as long as some steps, so a short run is made smaller less often."""
    num_calibration_batches: Positive = 8
    """For the mode `merge`: number of global training batches from which the batch norms get their statistics."""

    @field_validator("mode", mode="before")
    @classmethod
    def _is_not_removed(cls, mode: Any) -> Any:
        if mode == "refold":
            raise ValueError(
                "shrink.mode: received 'refold', which was removed; use 'merge', which costs as much (version 0.2.0 "
                "can finish a run that was begun with 'refold')"
            )
        return mode


@dataclass(frozen=True, config=_STRICT)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    interval_steps: Positive = 1000
    """Number of steps between two checkpoints."""
    num_kept: Positive = 3
    """Number of checkpoints that are kept, the newest ones."""


@dataclass(frozen=True, config=_STRICT)
class FaultsConfig:
    """When a run that makes no progress is ended."""

    stall_warning_seconds: PositiveFloat = 120.0
    """Seconds without a step after which a warning names the missing rank."""
    stall_limit_seconds: PositiveFloat = 600.0
    """Seconds without a step, or without a sign of life of another rank, after which the process ends with exit code
    7."""
    long_limit_seconds: PositiveFloat = 3600.0
    """The same limit, in seconds, for the first step, which is compiled, and for work that rank 0 does alone during
    training."""

    def __post_init__(self) -> None:
        if not self.stall_warning_seconds < self.stall_limit_seconds <= self.long_limit_seconds:
            raise ValueError(
                f"faults: received stall_warning_seconds {self.stall_warning_seconds:g}, stall_limit_seconds "
                f"{self.stall_limit_seconds:g} and long_limit_seconds {self.long_limit_seconds:g}; expected the "
                "first less than the second, and the second not more than the third"
            )


@dataclass(frozen=True, config=_STRICT)
class LoggingConfig:
    """What is logged, and when."""

    interval_steps: Positive = 100
    """Number of steps between two lines of the log, and between two points in TensorBoard."""
    evaluation_epochs: PositiveFloat = 1.0
    """Number of epochs between two evaluations. The end of a phase is always evaluated."""
    record_samples: bool = False
    """True if every rank writes the indices of its samples by step into `samples/` of the run's folder, to which it
    must have access."""
    compactor_heat_maps: tuple[str, ...] = ()
    """Names of groups whose compactors are shown as heat maps in TensorBoard at each evaluation. Empty for the first,
    the middle and the last group."""
    profile_start_step: NotNegative = 0
    """Number of steps in each phase before TensorFlow's profiler starts."""
    profile_num_steps: NotNegative = 0
    """Number of steps that are profiled on rank 0, for the tab `Profile` of TensorBoard; they are slower than others. 0
    for no profile."""


@dataclass(frozen=True, config=_STRICT)
class MergeConfig:
    """How the slim model is checked."""

    num_images: Annotated[int, Ge(256)] = 256
    """Number of validation images on which the slim model is compared with the trained one."""
    tolerance: PositiveFloat = 1e-4
    """Largest accepted difference between the logits of the two models, relative to the largest absolute logit."""
