"""Exports Keras models to other formats; a file is kept only if its outputs are those of the model."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resrep_dist.errors import CertificateError, ModelError, UserError, one_line
from resrep_dist.export.inference import Arrays, input_names, open_program, output_names, program_of
from resrep_dist.export.metadata import write_usage
from resrep_dist.models.strict_float32 import strict_float32

import numpy as np
import tensorflow as tf
from rich.console import Console
from tensorflow import keras

OPSET = 17
"""Version of ONNX' operators."""
_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported file, and its comparison with the Keras model on the same images."""

    path: Path
    """The file, or the folder of a SavedModel."""
    num_images: int
    """Number of images that were compared."""
    max_abs_difference: float
    """Largest absolute difference of two outputs."""
    max_relative_difference: float
    """Largest absolute difference of two outputs, as a fraction of the model's largest absolute output. Of several
    outputs the worst one."""
    argmax_agreement: float
    """Fraction of the images for which file and model predict the same class: for which the same value is the largest
    on the last axis."""
    relative_differences: dict[str, float]
    """`max_relative_difference` of each output, by name."""


def export_model(
    model: keras.Model,
    format_name: str,
    folder: Path | str,
    images: Any,
    tolerance: float,
    usage: Mapping[str, Any] | None = None,
) -> Export:
    """Write a model in another format, and compare the file with the model.

    Args:
        model: The model, with any number of inputs and outputs.
        format_name: One of `FORMATS`.
        folder: Folder for the file, created if it does not exist. An older export of this format is replaced.
        images: Images for the comparison, float32 [N, height, width, channels]; for a model with several inputs a list
            or dict of arrays.
        tolerance: Largest accepted difference, as a fraction of the largest absolute output; for a 16-bit format at
            least 0.01.
        usage: How the model is used, as in the section `usage` of `report.json`: it becomes the metadata of an ONNX
            file. None to write none. Other formats have no place for it.

    Raises:
        ModelError: If the model cannot be converted.
        CertificateError: If the outputs differ by more than the tolerance; no file is written.
        UserError: If the format is unknown, the converter is not installed, or the file cannot be written.
    """
    require_format(format_name, FORMATS)
    name, convert, lowest_tolerance = FORMATS[format_name]
    path = Path(folder) / name
    with replacing(path) as partial:
        with converting(model, format_name):
            convert(model, partial)
        if usage and partial.suffix == ".onnx":
            write_usage(partial, usage)
        export = _compare(model, partial, images, max(tolerance, lowest_tolerance))
    return dataclasses.replace(export, path=path)


def print_export(console: Console, export: Export) -> None:
    """Print which file was written, its size, and the comparison with the model."""
    console.print(
        f"{export.path} ({size_bytes(export.path) / 1e6:.2f} MB): largest difference {export.max_abs_difference:.2g}, "
        f"{export.max_relative_difference:.2g} of the largest output, on {export.num_images} images; "
        f"the same class for {100 * export.argmax_agreement:.1f} %"
    )


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a folder, bytes."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def require_format(name: str, known: Iterable[str]) -> None:
    """Check the name of a format.

    Args:
        name: The name.
        known: The names that there are.

    Raises:
        UserError: If it is none of them.
    """
    if name not in known:
        raise UserError(f"format {one_line(name)}: there is no such format; expected one of {', '.join(known)}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file, or the folder of a SavedModel, by a new one that is complete. If the block raises, it stays.

    Args:
        path: The file. Its folder is created if it does not exist.

    Yields:
        Where the block writes the new one.

    Raises:
        UserError: If it cannot be written.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-")
    with scratch:
        partial = Path(scratch.name) / path.name
        yield partial
        with _writing(path):
            if path.is_dir():
                # A rename does not replace a SavedModel's folder.
                os.replace(path, Path(scratch.name) / "before")
            os.replace(partial, path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({one_line(error.strerror)}); give another --output") from None


@contextlib.contextmanager
def converting(model: keras.Model, format_name: str) -> Iterator[None]:
    """Turn what a converter raises into a ModelError.

    Args:
        model: The model that the block converts.
        format_name: Name of the format, for the message.

    Raises:
        ModelError: If the block raises anything but a UserError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # converters raise errors of many classes
        raise ModelError(f"format {format_name}: {model.name} cannot be converted ({one_line(error)})") from None


def _compare(model: keras.Model, path: Path, images: Any, tolerance: float) -> Export:
    inputs = dict(zip(input_names(model), map(np.asarray, tf.nest.flatten(images)), strict=True))
    with strict_float32():
        expected, received = (_run_in_parts(program.run, inputs) for program in (program_of(model), open_program(path)))
    absolute, relative = {}, {}
    for name, values in expected.items():
        absolute[name] = float(np.max(np.abs(values - received[name])))
        relative[name] = absolute[name] / max(float(np.max(np.abs(values))), 1e-30)
    # A NaN in any output makes it a NaN.
    worst = float(np.max(list(relative.values())))
    num_images = len(next(iter(inputs.values())))
    # `not <=` instead of `>`, so that a NaN is refused as well.
    if not worst <= tolerance:
        raise CertificateError(
            f"{path.name}: its outputs differ from the Keras model's by {worst:.2g} of the largest on {num_images} "
            f"images, tolerance {tolerance:.2g}; it is not written"
        )
    agreements = [float(np.mean(expected[name].argmax(-1) == received[name].argmax(-1))) for name in expected]
    return Export(path, num_images, max(absolute.values()), worst, min(agreements), relative)


def _run_in_parts(run: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
    starts = range(0, len(next(iter(inputs.values()))), _BATCH_SIZE)
    parts = [run({name: array[start : start + _BATCH_SIZE] for name, array in inputs.items()}) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _inference_function(model: keras.Model) -> tf.types.experimental.GenericFunction:
    names = output_names(model)
    signature = [
        tf.TensorSpec([None, *tensor.shape[1:]], tf.float32, name=name)
        for name, tensor in zip(input_names(model), model.inputs, strict=True)
    ]

    def run(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = model(tf.nest.pack_sequence_as(model.input, list(inputs)), training=False)
        return dict(zip(names, tf.nest.flatten(outputs), strict=True))

    return tf.function(run, input_signature=signature)


def to_saved_model(model: keras.Model, path: Path) -> None:
    """Write a model as a SavedModel with an open batch size, whose inputs and outputs have our names."""
    # The variables instead of the model, of which Keras would trace and save every layer.
    module = tf.Module()
    module.weights, module.serve = model.variables, _inference_function(model)
    tf.saved_model.save(module, str(path), signatures=module.serve)


def _to_tflite(model: keras.Model, path: Path, is_float16: bool = False) -> None:
    # Via a SavedModel, so that the batch size stays open and the names are ours.
    with tempfile.TemporaryDirectory() as folder:
        to_saved_model(model, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if is_float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())


def _to_tflite_float16(model: keras.Model, path: Path) -> None:
    _to_tflite(model, path, is_float16=True)


def to_onnx(model: keras.Model, path: Path) -> None:
    """Write a model as ONNX, as `to_saved_model`.

    Raises:
        UserError: If tf2onnx is not installed.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise UserError(f"format onnx: {error}; install it with `pip install 'resrep-dist[onnx]'`") from None
    function = _inference_function(model)
    tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET, output_path=str(path))


FORMATS: dict[str, tuple[str, Callable[[keras.Model, Path], None], float]] = {
    "saved_model": ("saved_model", to_saved_model, 0.0),
    "tflite": ("model.tflite", _to_tflite, 0.0),
    "tflite_float16": ("model_float16.tflite", _to_tflite_float16, 1e-2),
    "onnx": ("model.onnx", to_onnx, 0.0),
}
"""For each format the name of the file, its converter, and the lowest tolerance that its precision allows."""
