"""Opens model files of all formats that this package writes, as functions from images to outputs."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import ModelError, UserError, one_line
from resrep_dist.models.files import load_model
from resrep_dist.monitoring.quiet import without_lines

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow import keras

Run = Callable[[np.ndarray], np.ndarray]
"""float32 [N, height, width, channels] -> float32 [N, num_classes], for any N."""
# With the batches of an evaluation the memory of the process was corrupted (TensorFlow 2.18.1).
_MAX_TFLITE_IMAGES = 32
# It prints this once in a process.
_LINES_OF_TFLITE = ["^INFO: Created TensorFlow Lite XNNPACK delegate"]


@dataclasses.dataclass(frozen=True)
class Inference:
    """An open model file."""

    input_shape: tuple[int, ...]
    """Height, width and channels of an image."""
    num_classes: int
    """Number of outputs per image."""
    run: Run
    """Computes the outputs for a batch of images."""


def open_model_file(path: Path) -> Inference:
    """Open a Keras file (.h5, .keras), the folder of a SavedModel, a .tflite or a .onnx file.

    A Keras file is read as data. The other formats are programs: open only files that you trust.

    Raises:
        ModelError: If the file cannot be opened, or does not have exactly one input and one output.
        UserError: If the file is .onnx and onnxruntime is not installed.
    """
    if path.is_dir():
        opened = _opened(_open_saved_model, path)
    elif path.suffix == ".tflite":
        opened = _opened(_open_tflite, path)
    elif path.suffix == ".onnx":
        opened = _opened(_open_onnx, path)
    else:
        return from_keras(load_model(path))
    run, input_shape, output_shape = opened
    return Inference(tuple(map(int, input_shape)), int(output_shape[-1]), run)


def from_keras(model: keras.Model) -> Inference:
    """Return a Keras model with one input and one output as an `Inference`."""
    function = tf.function(lambda images: model(images, training=False), reduce_retracing=True)

    def run(images: np.ndarray) -> np.ndarray:
        return function(tf.constant(images)).numpy()

    return Inference(tuple(model.input_shape[1:]), int(model.output_shape[-1]), run)


def load_any_model(path: Path, image_size: int, num_classes: int) -> keras.Model:
    """Load a model file of any format as a Keras model.

    The outputs of an exported file are turned into logits (see `as_keras_model`); those of a Keras file are as saved.

    Args:
        path: The file, or the folder of a SavedModel.
        image_size: Height and width of the images, pixels.
        num_classes: Number of classes.

    Raises:
        ModelError: As `open_model_file`, and if the model is for other images or classes.
        UserError: As `open_model_file`.
    """
    is_exported = path.is_dir() or path.suffix in (".tflite", ".onnx")
    model = as_keras_model(open_model_file(path)) if is_exported else load_model(path, open_size=image_size)
    received, expected = (*model.input_shape[1:], model.output_shape[-1]), (image_size, image_size, 3, num_classes)
    if received != expected:
        raise ModelError(
            f"model {path}: it takes images of {received[:-1]} and has {received[-1]} classes, expected "
            f"{expected[:-1]} and {num_classes}, from model.image_size and model.num_classes; give the configuration "
            "that it was trained with"
        )
    return model


def as_keras_model(inference: Inference) -> keras.Model:
    """Return a Keras model that calls `inference.run` and whose outputs are logits.

    If the outputs for random images are probabilities, the model returns their logarithms, which are logits of the same
    probabilities.
    """
    noise = np.random.default_rng(0).normal(size=(4, *inference.input_shape)).astype(np.float32)
    outputs = inference.run(noise)
    is_probability = bool(outputs.min() >= 0 and np.allclose(outputs.sum(-1), 1, atol=1e-2))

    def call(images: tf.Tensor) -> tf.Tensor:
        outputs = tf.numpy_function(inference.run, [images], tf.float32, stateful=False)
        outputs = tf.ensure_shape(outputs, [None, inference.num_classes])
        return tf.math.log(tf.maximum(outputs, 1e-30)) if is_probability else outputs

    inputs = keras.Input(inference.input_shape)
    return keras.Model(inputs, keras.layers.Lambda(call)(inputs), name="file")


def _opened(opener: Callable[[Path], tuple[Run, Any, Any]], path: Path) -> tuple[Run, Any, Any]:
    if not path.exists():
        raise ModelError(f"model {path}: there is no such file")
    try:
        return opener(path)
    except UserError:
        raise
    except Exception as error:  # each library has its own classes of errors
        raise ModelError(
            f"model {path}: cannot be opened ({one_line(error, 160)}); export it again with `resrep export`"
        ) from None


def _open_saved_model(path: Path) -> tuple[Run, Any, Any]:
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    (inputs,) = function.structured_input_signature[1].values()
    ((name, outputs),) = function.structured_outputs.items()

    def run(images: np.ndarray) -> np.ndarray:
        # `loaded` owns the variables, so it must exist as long as the function.
        return loaded.signatures["serving_default"](**{inputs.name: tf.constant(images)})[name].numpy()

    return run, inputs.shape[1:], outputs.shape


def _open_tflite(path: Path) -> tuple[Run, Any, Any]:
    def interpreter_of(num_images: int | None = None) -> Any:
        interpreter = _interpreter(path)
        if num_images is not None:
            (details,) = interpreter.get_input_details()
            interpreter.resize_tensor_input(details["index"], [num_images, *details["shape"][1:]])
            interpreter.allocate_tensors()
        return interpreter

    (inputs,), (outputs,) = (getattr(interpreter_of(), f"get_{side}_details")() for side in ("input", "output"))
    # One interpreter per batch size, so that none is resized after it has run.
    interpreters: dict[int, Any] = {}

    def run_part(images: np.ndarray) -> np.ndarray:
        if len(images) not in interpreters:
            interpreters[len(images)] = interpreter_of(len(images))
        interpreter = interpreters[len(images)]
        interpreter.set_tensor(inputs["index"], images)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(outputs["index"]))

    def run(images: np.ndarray) -> np.ndarray:
        parts = range(0, len(images), _MAX_TFLITE_IMAGES)
        return np.concatenate([run_part(images[first : first + _MAX_TFLITE_IMAGES]) for first in parts])

    return run, inputs["shape"][1:], outputs["shape"]


def _interpreter(path: Path) -> Any:
    """Create an interpreter, the first one without the line of the library that says which kernels it uses."""
    quietly = without_lines(_LINES_OF_TFLITE) if _LINES_OF_TFLITE else contextlib.nullcontext()
    with quietly:
        interpreter = Interpreter(str(path), num_threads=visible_cores())
    _LINES_OF_TFLITE.clear()
    return interpreter


def _open_onnx(path: Path) -> tuple[Run, Any, Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnx: {error}; install it with `pip install 'resrep-dist[onnx]'`") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = visible_cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    return lambda images: session.run(None, {inputs.name: images})[0], inputs.shape[1:], outputs.shape
