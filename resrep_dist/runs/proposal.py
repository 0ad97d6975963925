"""Proposes a configuration for data and a model: what a user would otherwise have to look up or guess."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from resrep_dist.config.model_names import unknown_model
from resrep_dist.config.normalization import default_normalization
from resrep_dist.data.finding import FoundData, find_data
from resrep_dist.errors import ConfigError
from resrep_dist.models.files import load_model
from resrep_dist.models.input_scale import scaling_layer
from resrep_dist.pruning.schedule import PAPER_LASSO_STRENGTH
from resrep_dist.training.start_checks import require_one_input_and_output

from tensorflow import keras

_MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
_DEFAULT_IMAGE_SIZE = 224
_MIN_STEPS = 1500
_MIN_EPOCHS, _MAX_EPOCHS = 20, 180
PROPOSED_ROUND_TO = 4
"""Proposed `prune.round_to`: ONNX Runtime's blocked convolutions need input channels in multiples of 4."""
_COMMENTS = {
    "target_macs_fraction": "multiply-adds that may be left",
    "lasso_strength": "this and the times of the masks are chosen for the length of `train`",
    "kept_lasso_strength": "of the channels that stay",
    "round_to": f"widths in multiples of {PROPOSED_ROUND_TO} run faster on CPUs, of 8 on GPUs",
    "mode": "merge: dead channels leave while it trains; off: at the end",
}
# With less the rows die in a hurry, see `MaskSchedule.cautions`.
_FEWEST_STEPS = 400
# From so many training images on, batches of this size.
_BATCH_SIZES = ((200_000, 256), (20_000, 128), (2_000, 64), (0, 32))


def proposed_batch_size(num_images: int) -> int:
    """Return a global batch size for a number of training images.

    Args:
        num_images: The number.
    """
    return min(num_images, next(size for least, size in _BATCH_SIZES if num_images >= least))


def proposed_epochs(num_images: int, batch_size: int) -> int:
    """Return a length for the pruning phase: at least 1,500 steps, in 20 to 180 epochs, or more for 400 steps.

    Args:
        num_images: Number of training images.
        batch_size: Global batch size.
    """
    steps_per_epoch = num_images / batch_size
    epochs = min(_MAX_EPOCHS, max(_MIN_EPOCHS, math.ceil(_MIN_STEPS / steps_per_epoch)))
    return max(epochs, math.ceil(_FEWEST_STEPS / steps_per_epoch))


def proposed_shrink_mode(model: keras.Model | None) -> Literal["merge", "off"]:
    """Return how a model becomes smaller while it trains.

    Args:
        model: The model; None if it is built later.

    Returns:
        `merge`, the best in the comparison of docs/shrinking.md; `off` for a model with constraints, whose limits would
        be others for fewer numbers.
    """
    weights = model.trainable_weights if model else []
    return "off" if any(weight.constraint is not None for weight in weights) else "merge"


def proposed_pruning(
    target_macs_fraction: float, shrink_mode: str, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what is proposed for the sections `prune` and `shrink`, without what a user's own settings exclude.

    Args:
        target_macs_fraction: Multiply-adds that may be left.
        shrink_mode: See `proposed_shrink_mode`.
        settings: The user's settings, by section and key.
    """
    prune = settings.get("prune")
    own = prune if isinstance(prune, Mapping) else {}
    target = own.get("target")
    proposed: dict[str, Any] = {} if target else {"target_macs_fraction": target_macs_fraction}
    proposed["lasso_strength"] = "auto"
    # The other rule has one penalty for all rows, which are never exactly zero.
    if own.get("rule", "radial") != "radial":
        return {"prune": proposed}
    proposed["kept_lasso_strength"] = PAPER_LASSO_STRENGTH
    # A table of times knows which widths are fast.
    if not (isinstance(target, Mapping) and "costs" in target):
        proposed["round_to"] = PROPOSED_ROUND_TO
    return {"prune": proposed, "shrink": {"mode": shrink_mode}}


def propose(
    model: str,
    data: Path,
    target_macs_fraction: float = 0.5,
    num_epochs: float | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return a complete configuration with comments, as YAML.

    Args:
        model: A Keras file, or a name as in `model.name`.
        data: See `find_data`.
        target_macs_fraction: Multiply-adds that may be left.
        num_epochs: Length of the pruning phase; None for one that fits the number of images.
        weights: File with the weights of a model that is given by name; None to train it first.
        image_size: Height and width of the images, pixels; None for the model's, or the data's.
        settings: Settings by section and key that will replace proposed ones. What they exclude is not proposed.

    Raises:
        ConfigError: If the model is neither a file nor one of the names.
        DataError: If the data is of no known kind.
        ModelError: If the model's file cannot be read, or it has several inputs or outputs.
    """
    name = f"file:{model}" if model.lower().endswith(_MODEL_SUFFIXES) and ":" not in model else model
    if message := unknown_model(name):
        raise ConfigError(message)
    found = find_data(Path(data))
    is_file = name.startswith("file:")
    size, scaling, loaded = image_size or found.image_size or _DEFAULT_IMAGE_SIZE, None, None
    if is_file:
        loaded = load_model(Path(name.removeprefix("file:")), open_size=size)
        require_one_input_and_output(loaded)
        size, scaling = image_size or loaded.inputs[0].shape[1], scaling_layer(loaded)
    batch_size = proposed_batch_size(found.num_images)
    epochs = proposed_epochs(found.num_images, batch_size) if num_epochs is None else num_epochs
    num_steps = max(1, round(epochs * found.num_images / batch_size))
    pruning = proposed_pruning(target_macs_fraction, proposed_shrink_mode(loaded), settings or {})
    return "\n".join(
        [
            "# Proposed by `resrep init`. Every key is described in resrep_dist/config.",
            *([f"task: {found.task}", ""] if found.task != "classification" else []),
            *_model(name, found, size, weights),
            *_data(found, batch_size, _normalization(found.source, name, scaling)),
            *([] if is_file or weights else _base(epochs)),
            *_phase(epochs, num_steps),
            *_pruning(pruning),
            *_records(epochs, num_steps),
        ]
    )


def _commented(setting: str, comment: str) -> str:
    return f"{setting:<31} # {comment}"


def _quoted(text: str) -> str:
    """Return a text in quotes of YAML, as it is read, but for what cannot be printed."""
    # JSON escapes an emoji as two halves, which are none to YAML; Python as one character.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in json.dumps(text, ensure_ascii=False))


def _model(name: str, found: FoundData, size: int, weights: str | None) -> list[str]:
    return [
        "model:",
        f"  name: {_quoted(name)}",
        _commented(f"  num_classes: {found.num_classes}", "found in the data"),
        _commented(f"  image_size: {size}", "pixels, height and width"),
        *([f"  weights: {_quoted(weights)}"] if weights else []),
        "",
    ]


def _data(found: FoundData, batch_size: int, normalization: str) -> list[str]:
    batch = f"on all ranks together, for {found.num_images:,} training images"
    return [
        "data:",
        f"  source: {found.source}",
        *([f"  path: {_quoted(found.path)}"] if found.path else []),
        _commented(f"  global_batch_size: {batch_size}", batch),
        normalization,
        "",
    ]


def _phase(epochs: float, num_steps: int) -> list[str]:
    return [
        _commented("train:", f"the pruning phase, {num_steps:,} steps"),
        f"  num_epochs: {epochs:g}",
        _commented("  learning_rate: 0.01", "a cosine takes it to zero; 0.01 to 0.02 suit a trained model"),
        "",
    ]


def _pruning(proposed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for section, values in proposed.items():
        lines.append(f"{section}:")
        for name, value in values.items():
            text = f"{value:g}" if isinstance(value, float) else value
            lines.append(_commented(f"  {name}: {text}", _COMMENTS[name]))
        lines.append("")
    return lines


def _records(epochs: float, num_steps: int) -> list[str]:
    """Return how often the run writes checkpoints and figures."""
    return [
        "checkpoint:",
        f"  interval_steps: {min(1000, max(50, num_steps // 10))}",
        "",
        "logging:",
        f"  interval_steps: {min(100, max(1, num_steps // 50))}",
        f"  evaluation_epochs: {max(1.0, epochs / 20):g}",
        "",
    ]


def _base(epochs: float) -> list[str]:
    return [
        _commented("base:", "the model has no weights yet, so it is trained first"),
        f"  num_epochs: {epochs:g}",
        "  learning_rate: 0.1",
        f"  warmup_epochs: {epochs / 20:g}",
        "",
    ]


def _normalization(source: str, name: str, scaling: str | None) -> str:
    """Return the line for the scale of the pixels: none for a model that scales them itself."""
    if scaling is not None and source != "digits":
        return _commented("  normalization: none", f"the model scales the pixels itself, in its layer {scaling}")
    scale = default_normalization(source, name)
    return _commented(f"  normalization: {scale}", "how the pixels are scaled; it must be as the model was trained")
