"""TFLite in eight bits, by TensorFlow's converter: all weights and activations as integers."""

import contextlib
import csv
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrep_dist.export.convert import to_saved_model
from resrep_dist.monitoring.quiet import without_lines

import numpy as np
import tensorflow as tf
from tensorflow import keras

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
# The converter and its interpreter print these whatever one sets.
_LINES = ["^fully_quantize: ", "^INFO: Created TensorFlow Lite XNNPACK delegate"]


def to_tflite_eight_bits(model: keras.Model, path: Path, images: np.ndarray, has_integer_ends: bool) -> None:
    """Write a model as TFLite whose operations are all in eight bits, weights per channel.

    Args:
        model: A model with one input and one output.
        path: The file.
        images: Images for the calibration, float32 [N, height, width, channels].
        has_integer_ends: True for an input and an output of int8, False for float32.
    """
    with _converter(model, images) as converter:
        if has_integer_ends:
            converter.inference_input_type = converter.inference_output_type = tf.int8
        path.write_bytes(converter.convert())


def tflite_layers_alone(model: keras.Model, images: np.ndarray, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the model once for each of its layers with weights, with only this layer in eight bits.

    Args:
        model: A model with one input and one output.
        images: Images for the calibration, float32 [N, height, width, channels].
        folder: Folder for the file, which each layer replaces.

    Yields:
        What the converter calls the layer, which contains its name, and the file.
    """
    lite, path = tf.lite.experimental, folder / "alone.tflite"
    with _converter(model, images) as converter:
        debugger = lite.QuantizationDebugger(converter=converter, debug_dataset=lambda: iter([[images[:1]]]))
        # Its statistics are the only place where it tells the names of the operations.
        debugger.run()
        written = io.StringIO()
        debugger.layer_statistics_dump(written)
        operations = list(csv.DictReader(io.StringIO(written.getvalue())))
    names = [operation["tensor_name"] for operation in operations]
    for operation in operations:
        if operation["op_name"] in _WEIGHTED:
            name = operation["tensor_name"]
            with _quietly():
                others = [other for other in names if other != name]
                # A new file, since the interpreter of the last one may still read it.
                path.unlink(missing_ok=True)
                debugger.options = lite.QuantizationDebugOptions(denylisted_nodes=others)
                path.write_bytes(debugger.get_nondebug_quantized_model())
            yield name, path


@contextlib.contextmanager
def _converter(model: keras.Model, images: np.ndarray) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder, _quietly():
        to_saved_model(model, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        # One by one, since the file has an open batch size, for which the converter takes 1.
        converter.representative_dataset = lambda: ([images[number : number + 1]] for number in range(len(images)))
        # Refuses a model with an operation that has no integer version.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        yield converter


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what TensorFlow says of its own deprecated interpreter, which the calibration uses."""
    with warnings.catch_warnings(), without_lines(_LINES):
        warnings.simplefilter("ignore")
        yield
