"""Exports Keras models in eight bits: calibrated on training images, and measured on the whole validation set."""

import dataclasses
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resrep_dist.config.tasks import SCORE_NAMES, score_of
from resrep_dist.data.order import evaluation_batches
from resrep_dist.data.source import ImageSource
from resrep_dist.errors import CertificateError, ModelError, UserError, one_line
from resrep_dist.export.convert import converting, replacing, require_format, size_bytes
from resrep_dist.export.inference import open_program, program_of
from resrep_dist.export.metadata import write_usage
from resrep_dist.export.onnx_eight_bits import onnx_layers_alone, to_onnx_eight_bits
from resrep_dist.export.tflite_eight_bits import tflite_layers_alone, to_tflite_eight_bits
from resrep_dist.models.softmax import ends_in_probabilities
from resrep_dist.models.strict_float32 import strict_float32
from resrep_dist.training.scores import scores_of

import numpy as np
import tensorflow as tf
from rich.console import Console
from tensorflow import keras

_log = logging.getLogger(__name__)
_BATCH_SIZE = 64
# Each layer is quantized alone on these, to find those that lose most.
_NUM_IMAGES_OF_LAYERS, _NUM_NAMED = 32, 3


class EightBitFormat(NamedTuple):
    """A format in eight bits."""

    file_name: str
    """Name of the file."""
    convert: Callable[[keras.Model, Path, np.ndarray, bool], None]
    """Writes the model, given the file, the images of the calibration, and whether the ends are integers."""
    layers_alone: Callable[[keras.Model, np.ndarray, Path], Iterator[tuple[str, Path]]]
    """Writes the model once for each layer, with only this layer in eight bits."""


EIGHT_BIT_FORMATS = {
    "tflite_int8": EightBitFormat("model_int8.tflite", to_tflite_eight_bits, tflite_layers_alone),
    "onnx_int8": EightBitFormat("model_int8.onnx", to_onnx_eight_bits, onnx_layers_alone),
}


@dataclasses.dataclass(frozen=True)
class EightBitExport:
    """A file in eight bits, and its comparison with the Keras model on the whole validation set."""

    path: Path
    """The file."""
    score: str
    """Key of the score of the task: `top1`, `mean_average_precision` or `mean_iou`."""
    float_score: float
    """Score of the Keras model, percent."""
    eight_bit_score: float
    """Score of the file, percent."""
    equal_classes: float
    """Fraction of the images for which file and model predict the same class; of the labels with several labels, of
    the pixels for a segmentation."""
    max_abs_difference: float
    """Largest absolute difference of two outputs."""
    mean_abs_difference: float
    """Mean absolute difference of the outputs."""
    max_relative_difference: float
    """`max_abs_difference` as a fraction of the model's largest absolute output."""
    mean_relative_difference: float
    """`mean_abs_difference` as a fraction of the model's largest absolute output."""
    num_images: int
    """Number of images of the validation set."""
    num_calibration_images: int
    """Number of training images of the calibration."""
    encodings: dict[str, dict[str, Any]]
    """For an input and an output of integers `type_name`, `scale` and `zero_point` by name; see `Encoding`."""

    @property
    def drop(self) -> float:
        """How much lower the score of the file is than that of the model, percentage points."""
        return self.float_score - self.eight_bit_score


def export_eight_bits(
    model: keras.Model,
    format_name: str,
    folder: Path | str,
    calibration_images: np.ndarray,
    validation_data: ImageSource,
    *,
    has_integer_ends: bool = False,
    max_score_drop: float = 1.0,
    usage: Mapping[str, Any] | None = None,
) -> EightBitExport:
    """Write a model in eight bits, and compare the file with the model on the whole validation set.

    Weights are quantized per channel, activations by the least and the largest value on the calibration images.

    Args:
        model: A model with one input and one output.
        format_name: One of `EIGHT_BIT_FORMATS`.
        folder: Folder for the file, created if it does not exist. An older export of this format is replaced.
        calibration_images: Training images as the model receives them, float32 [N, height, width, channels].
        validation_data: The validation set.
        has_integer_ends: True for an input and an output of integers, False for float32.
        max_score_drop: Largest accepted drop of the score of the task (top-1, mAP, mean IoU), percentage points.
        usage: As in `export_model`.

    Raises:
        ModelError: If the model has several inputs or outputs, or cannot be converted.
        CertificateError: If the score drops by more; no file is written. The message names the layers that lose most.
        UserError: If there are no calibration images, the format is unknown, the quantizer is not installed, or the
            file cannot be written.
    """
    require_format(format_name, EIGHT_BIT_FORMATS)
    require_one_end(model)
    if len(calibration_images) == 0:
        raise UserError("calibration without images: received 0, expected at least 1 training image")
    require_drop(max_score_drop)
    path = Path(folder) / EIGHT_BIT_FORMATS[format_name].file_name
    with replacing(path) as partial:
        write_eight_bits(model, format_name, partial, calibration_images, has_integer_ends)
        if usage and partial.suffix == ".onnx":
            write_usage(partial, usage)
        export = _compare(model, partial, validation_data, len(calibration_images))
        # `not <=` instead of `>`, so that a NaN is refused as well.
        if not export.drop <= max_score_drop:
            raise CertificateError(
                f"{path.name}: {_scores(export)}, a drop of more than {max_score_drop:g} points; it is not written. "
                f"{_worst_layers(model, format_name, calibration_images[:_NUM_IMAGES_OF_LAYERS])}"
            )
    return dataclasses.replace(export, path=path)


def write_eight_bits(
    model: keras.Model, format_name: str, path: Path, images: np.ndarray, has_integer_ends: bool = False
) -> None:
    """Write a model in eight bits, whatever it loses.

    Args:
        model: A model with one input and one output.
        format_name: One of `EIGHT_BIT_FORMATS`.
        path: The file.
        images: Images for the calibration, float32 [N, height, width, channels].
        has_integer_ends: As in `export_eight_bits`.

    Raises:
        ModelError: If the model cannot be converted.
        UserError: If the quantizer is not installed.
    """
    with converting(model, format_name):
        EIGHT_BIT_FORMATS[format_name].convert(model, path, images, has_integer_ends)


def require_one_end(model: keras.Model) -> None:
    """Check that a model can be calibrated on images and compared by one score.

    Raises:
        ModelError: If it does not have exactly one input and one output.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(
            f"model {model.name}: it has {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one of "
            "each; eight bits are calibrated on images alone and judged by one score"
        )


def require_drop(points: float) -> None:
    """Check the largest accepted drop of a score.

    Raises:
        UserError: If it is not a number of at least 0.
    """
    if not points >= 0:
        raise UserError(f"--max-top1-drop {points:g}: expected percentage points, 0 or more")


def print_eight_bits(console: Console, export: EightBitExport) -> None:
    """Print which file was written, its size, its score beside that of the model, and the differences."""
    console.print(
        f"{export.path} ({size_bytes(export.path) / 1e6:.2f} MB): {_scores(export)}, on {export.num_images} images; "
        f"the same class for {100 * export.equal_classes:.1f} %; largest difference "
        f"{export.max_relative_difference:.2g} of the largest output, mean {export.mean_relative_difference:.2g}; "
        f"calibrated on {export.num_calibration_images} images"
    )


def _scores(export: EightBitExport) -> str:
    return (
        f"{SCORE_NAMES[export.score]} {export.eight_bit_score:.2f} % in eight bits, {export.float_score:.2f} % in float"
    )


def _compare(model: keras.Model, path: Path, data: ImageSource, num_calibration_images: int) -> EightBitExport:
    programs = program_of(model), open_program(path)
    scores, has_probabilities = scores_of(data.task, model), ends_in_probabilities(model)
    counts = np.zeros([2, scores.num_counts], np.int64)
    num_equal, num_decisions, num_outputs, total, largest, largest_output = 0, 0, 0, 0.0, 0.0, 0.0
    with strict_float32():
        for images, labels in evaluation_batches(data, _BATCH_SIZE, 0, 1):
            expected, received = (program.run({"images": images.numpy()})["outputs"] for program in programs)
            counts += [scores.count(labels, tf.constant(outputs)).numpy() for outputs in (expected, received)]
            decisions = [_decisions(outputs, data.task, has_probabilities) for outputs in (expected, received)]
            num_equal += int(np.sum(decisions[0] == decisions[1]))
            num_decisions, num_outputs = num_decisions + decisions[0].size, num_outputs + expected.size
            differences = np.abs(expected - received)
            total += float(differences.sum(dtype=np.float64))
            # Python's max would forget a NaN.
            largest = float(np.maximum(largest, differences.max()))
            largest_output = max(largest_output, float(np.abs(expected).max()))
    of_model, of_file = (score_of(scores.values(of_one, len(data))) for of_one in counts)
    unit = max(largest_output, 1e-30)
    mean = total / num_outputs
    encodings = {name: dataclasses.asdict(encoding) for name, encoding in programs[1].encodings.items()}
    return EightBitExport(
        path, of_model.key, of_model.value, of_file.value, num_equal / num_decisions, largest, mean, largest / unit,
        mean / unit, len(data), num_calibration_images, encodings,
    )  # fmt: skip


def _decisions(outputs: np.ndarray, task: str, has_probabilities: bool) -> np.ndarray:
    """Return the class of each image or pixel, or whether it has each label."""
    if task == "multilabel":
        return outputs >= (0.5 if has_probabilities else 0.0)
    return outputs.argmax(-1)


def _worst_layers(model: keras.Model, format_name: str, images: np.ndarray) -> str:
    """Return a sentence with the layers that change the outputs most, each quantized alone."""
    _log.info("The score drops too much; each layer is quantized alone to find those that lose most.")
    expected = program_of(model).run({"images": images})["outputs"]
    losses: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, path in EIGHT_BIT_FORMATS[format_name].layers_alone(model, images, Path(folder)):
                difference = open_program(path).run({"images": images})["outputs"] - expected
                noise = math.sqrt(np.mean(difference**2) / max(float(np.mean(expected**2)), 1e-30))
                layer = _layer_in(model, name)
                losses[layer] = max(noise, losses.get(layer, 0.0))
    except Exception as error:  # the tools of the quantizers raise errors of many classes
        return f"The layers that lose most could not be found ({one_line(error)})"
    worst = sorted(losses.items(), key=lambda item: -item[1])[:_NUM_NAMED]
    named = ", ".join(f"{name} ({100 * noise:.1f} %)" for name, noise in worst)
    return f"Layers that lose most, by how much each changes the outputs if it alone is in eight bits: {named}"


def _layer_in(model: keras.Model, text: str) -> str:
    """Return the name of the layer with weights that is part of an operation's name; otherwise that name."""
    words = set(re.split(r"[/;:]", text))
    weighted = [layer for layer in model.layers if hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel")]
    if weighted and "StatefulPartitionedCall" in words:
        # So TFLite calls the output, and the operation that computes it.
        return str(weighted[-1].name)
    return next((str(layer.name) for layer in weighted if layer.name in words), text)
