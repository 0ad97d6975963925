"""The sections of a configuration: frozen, typed, validated dataclasses with the units in the names."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[int, Gt(0)]
NotNegative = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NotNegativeFloat = Annotated[float, Ge(0)]
Momentum = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    name: str
    """A model by name (`resrep inspect` lists them when one is unknown), `keras:<Name>` of keras.applications,
    `file:<path>` of a Keras file with its weights, or `python:<module>:<function>` of your own."""
    num_classes: Annotated[int, Ge(2)]
    """Number of classes of the last layer."""
    image_size: Annotated[int, Ge(8)]
    """Height and width of the images, pixels."""
    weights: str | None = None
    """Weights of the base model: a Keras file (.h5, .keras, .weights.h5), or torchvision's or timm's names in
    .safetensors; without them the `base` phase trains it."""


# For each source the augmentations that it can do; the first is its default.
_ON_ARRAYS = ("none", "shift", "pad_crop_flip")
_ON_FILES = ("resized_crop_flip", *_ON_ARRAYS)
_AUGMENTATIONS = {
    "arrays": _ON_ARRAYS,
    "digits": _ON_ARRAYS,
    "npz": _ON_ARRAYS,
    "synthetic": _ON_ARRAYS,
    "cifar10": ("pad_crop_flip", "none", "shift"),
    "cifar100": ("pad_crop_flip", "none", "shift"),
    "imagefolder": _ON_FILES,
    "tfrecord": _ON_FILES,
    "tfds": _ON_FILES,
}
_PATHS = {
    "imagefolder": "the folder that holds train/<class>/ and val/<class>/",
    "tfrecord": "the folder that holds train-00000-of-01024 and validation-00000-of-00128",
    "tfds": "the data_dir that holds the prepared set",
    "cifar10": "the folder or .tar.gz of the binary version",
    "cifar100": "the folder or .tar.gz of the binary version",
    "npz": "a file with x_train, y_train, x_test and y_test",
}


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    source: Literal["digits", "imagefolder", "tfrecord", "tfds", "cifar10", "cifar100", "npz", "synthetic", "arrays"]
    """Where the images come from; `arrays`: from your own program, which gives them to the Trainer."""
    global_batch_size: Positive
    """Samples per step over all ranks together."""
    path: str | None = None
    """Folder or file of the data; `digits`, `synthetic` and `arrays` have none."""
    name: str | None = None
    """`tfds`: the set's name, as in `imagenet2012` or `mnist:3.0.1`."""
    augmentation: Literal["default", "none", "shift", "pad_crop_flip", "resized_crop_flip"] = "default"
    """`shift`: translate by up to an eighth of the image, zeros moving in. `pad_crop_flip`: the same and a
    mirror image half the time. `resized_crop_flip`: a random window, resized, and a mirror image half the
    time. `default`: what is usual for the source; the resolved configuration says which."""
    crop_fraction: Annotated[float, Gt(0), Le(1)] = 0.875
    """Evaluation of image files resizes the short side to image_size / crop_fraction and takes the centre."""
    index_folder: str | None = None
    """`tfrecord`, `tfds`: keep the list of record offsets here; without it every start scans the shards."""
    num_samples: Positive = 51_200
    """`synthetic`: size of the training set."""
    evaluation_batch_size: Positive = 256
    """Samples per evaluation step on one rank."""

    def __post_init__(self) -> None:
        if self.path is None and self.source in _PATHS:
            raise ValueError(f"data.path: missing; data.source {self.source} needs {_PATHS[self.source]}")
        if self.path is not None and self.source not in _PATHS:
            raise ValueError(
                f"data.path: received {self.path!r}, but data.source {self.source} reads no files; drop it"
            )
        if (self.name is None) == (self.source == "tfds"):
            mend = "give the set's name, as in mnist" if self.name is None else "only tfds has one; drop it"
            raise ValueError(f"data.name: received {self.name!r} with data.source {self.source}; {mend}")
        known = _AUGMENTATIONS[self.source]
        if self.augmentation == "default":
            object.__setattr__(self, "augmentation", known[0])
        if self.augmentation not in known:
            raise ValueError(
                f"data.augmentation: received {self.augmentation!r}, but data.source {self.source} "
                f"can do {', '.join(known)}"
            )


@dataclass(frozen=True, config=_STRICT)
class PhaseConfig:
    num_epochs: PositiveFloat
    """Length of the phase, epochs of the training set."""
    learning_rate: PositiveFloat
    """Peak learning rate at the reference batch size."""
    schedule: Literal["cosine", "step"] = "cosine"
    """From the peak a cosine to zero, or a factor at each milestone."""
    milestone_epochs: tuple[PositiveFloat, ...] = ()
    """With the schedule `step`: where the rate is multiplied by `milestone_factor`, epochs of the phase."""
    milestone_factor: Annotated[float, Gt(0), Lt(1)] = 0.1
    """What the rate is multiplied by at each milestone."""
    warmup_epochs: NotNegativeFloat = 0.0
    """Linear rise from zero to the peak, epochs; counted in `num_epochs`."""
    reference_batch_size: Positive | None = None
    """The rate is scaled by global_batch_size / reference_batch_size; none means no scaling."""
    momentum: Momentum = 0.9
    """Momentum of all weights but the compactors'."""
    weight_decay: NotNegativeFloat = 1e-4
    """Decay of all weights but compactors, bias and batch norm."""


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """How both phases compute a step."""

    loss: str = "sparse_categorical_crossentropy"
    """A loss of keras.losses by name, or `package>name` of a registered one."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the label that is spread over all classes, for losses that have the option."""
    class_weights: tuple[NotNegativeFloat, ...] = ()
    """What the loss of a sample is multiplied by, one number for each class; none means 1 for all."""
    metrics: tuple[str, ...] = ()
    """Metrics of keras.metrics by name, of each evaluation; top-1 and top-5 are there without."""
    gradient_accumulation_steps: Positive = 1
    """Parts in which a rank computes its share of a batch, one after the other, to save memory."""
    gradient_clip_norm: PositiveFloat | None = None
    """Largest global norm of the averaged gradients, before decay, gradient reset and penalty; none means any."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    """What layers compute in; weights, compactor kernels, masks and norms are float32 always."""
    xla: bool = False
    """Compile the forward and backward pass and the update with XLA; the collective stays outside."""
    compression: Literal["none", "fp16"] = "none"
    """`fp16`: gradients travel as float16, in a group of their own; norms, statistics and counts never do."""
    sync_batch_norm: bool = False
    """Batch norm by the statistics of all ranks: two more collectives per batch norm and step."""


@dataclass(frozen=True, config=_STRICT)
class PruneConfig:
    target_macs_fraction: Annotated[float, Gt(0), Lt(1)]
    """Multiply-adds to keep, as a fraction of the base model's."""
    lasso_strength: PositiveFloat = 1e-4
    """lambda of the penalty, section 3.3 of the paper."""
    compactor_momentum: Momentum = 0.99
    """Momentum of the compactors."""
    rule: Literal["radial", "paper"] = "radial"
    """How masked rows die: in a straight line to exactly zero, or by the paper's plain update."""
    mask_start_epochs: NotNegativeFloat = 5.0
    """No mask is chosen before."""
    mask_interval_steps: Positive = 200
    """Steps from one choice of masks to the next."""
    channels_per_update: Positive = 4
    """At most so many channels more are chosen at each update."""
    mask_stop_fraction: Annotated[float, Gt(0), Le(1)] | None = None
    """Masks change only in this part of the phase; none: as long as a row of norm 1 has still time to die."""
    min_channels: Positive = 1
    """Every layer keeps at least so many channels."""
    round_to: Positive = 1
    """Surviving widths are rounded up to multiples of this; 8 suits tensor cores."""
    paper_dead_row_norm: NotNegativeFloat = 1e-5
    """With the rule `paper`, a masked row of at most this norm counts as dead (the authors' threshold)."""
    exclude: tuple[str, ...] = ()
    """Convolutions that are not pruned, by name."""
    residual_groups: bool = False
    """All layers that meet in an addition share one mask; false leaves them as they are, as in the paper."""
    max_extension_epochs: NotNegativeFloat = 10.0
    """The run goes on at most so long when masked rows are still alive at its end."""

    @property
    def dead_row_norm(self) -> float:
        """Masked rows of at most this norm are dead: `radial` takes them to zero, `paper` only near it."""
        return self.paper_dead_row_norm if self.rule == "paper" else 0.0


@dataclass(frozen=True, config=_STRICT)
class ShrinkConfig:
    """How the model in training gets smaller while channels die; off by default."""

    mode: Literal["off", "exact", "refold"] = "off"
    """`exact`: dead channels leave the compactors and the layers behind them; what is trained stays the same.
    `refold`: the convolutions before the compactors lose them too: convolution, batch norm and compactor begin anew
    at the surviving width, each time."""
    min_saved_macs_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    """The model shrinks only when that saves at least this part of the base model's multiply-adds; every time
    costs the tracing of a new graph. By the default a ResNet-56 down to 0.47 shrinks five times at most."""
    num_calibration_batches: Positive = 8
    """`refold`: global batches of the training set that give the new batch norms their statistics."""


@dataclass(frozen=True, config=_STRICT)
class CheckpointConfig:
    interval_steps: Positive = 1000
    """Steps from one checkpoint to the next."""
    num_kept: Positive = 3
    """The newest ones that are kept."""


@dataclass(frozen=True, config=_STRICT)
class FaultsConfig:
    stall_warning_seconds: PositiveFloat = 120.0
    """After so long without a step the log says so, and which rank is missing."""
    stall_limit_seconds: PositiveFloat = 600.0
    """After so long without a step, or without a sign of life of another rank, the process ends with code 7."""
    long_limit_seconds: PositiveFloat = 3600.0
    """The same for the first step, which compiles, and for what rank 0 does alone in the middle of training."""

    def __post_init__(self) -> None:
        if not self.stall_warning_seconds < self.stall_limit_seconds <= self.long_limit_seconds:
            raise ValueError(
                f"faults: received stall_warning_seconds {self.stall_warning_seconds:g}, stall_limit_seconds "
                f"{self.stall_limit_seconds:g} and long_limit_seconds {self.long_limit_seconds:g}; expected the "
                "first below the second, and the third not below it"
            )


@dataclass(frozen=True, config=_STRICT)
class LoggingConfig:
    interval_steps: Positive = 100
    """Steps from one line in the log and one point in TensorBoard to the next."""
    evaluation_epochs: PositiveFloat = 1.0
    """Epochs from one evaluation to the next; the end of a phase is evaluated too."""
    record_samples: bool = False
    """Every rank writes which samples it sees, by step, into `samples/` of the run's folder, which it must reach."""
    compactor_heat_maps: tuple[str, ...] = ()
    """Groups of layers whose compactors TensorBoard shows at each evaluation, by name; none: first, middle, last."""
    profile_start_step: NotNegative = 0
    """Steps before TensorFlow's profiler starts, counted from the start of each phase."""
    profile_num_steps: NotNegative = 0
    """Steps that rank 0 profiles, for TensorBoard's tab `Profile`; 0: none. A profiled step is slower."""


@dataclass(frozen=True, config=_STRICT)
class MergeConfig:
    num_images: Annotated[int, Ge(256)] = 256
    """Validation images on which the slim model is compared with the trained one."""
    tolerance: PositiveFloat = 1e-4
    """Largest difference of the logits that is accepted, relative to the largest logit."""
