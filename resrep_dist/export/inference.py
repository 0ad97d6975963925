"""Opens model files of all formats that this package writes, as functions from images to outputs."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import ModelError, UserError, one_line
from resrep_dist.export.encoding import ENCODINGS_KEY, Encoding, encodings_from, in_numbers, require_encodings
from resrep_dist.models.ends import names_of_inputs, names_of_outputs
from resrep_dist.models.files import load_model
from resrep_dist.monitoring.quiet import without_lines
from resrep_dist.timing.runtimes import onnx_options

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow import keras

Run = Callable[[np.ndarray], np.ndarray]
"""float32 [N, height, width, channels] -> float32 [N, num_classes], for any N."""
Shape = tuple[int | None, ...]
Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name, float32 [N, ...]."""
# With the batches of an evaluation the memory of the process was corrupted (TensorFlow 2.18.1).
_MAX_TFLITE_SAMPLES = 32
# Scaled pixels, and those from 0 to 255.
_NOISE_SCALES = (1.0, 10.0, 100.0)
# It prints this once in a process.
_LINES_OF_TFLITE = ["^INFO: Created TensorFlow Lite XNNPACK delegate"]


@dataclasses.dataclass(frozen=True)
class Program:
    """An open model file with any number of inputs and outputs."""

    input_shapes: dict[str, Shape]
    """Shape of each input by name, without the number of samples."""
    output_shapes: dict[str, Shape]
    """Shape of each output by name, without the number of samples."""
    run: Callable[[Arrays], Arrays]
    """Computes the outputs for a batch, for any number of samples."""
    encodings: dict[str, Encoding] = dataclasses.field(default_factory=dict)
    """How the inputs and outputs that are integers in the file are encoded, by name; `run` takes and gives numbers."""
    run_integers: Callable[[Arrays], Arrays] | None = None
    """As `run`, but takes and gives these integers; None if there are none."""


@dataclasses.dataclass(frozen=True)
class Inference:
    """An open model file."""

    input_shape: tuple[int, ...]
    """Height, width and channels of an image."""
    output_shape: tuple[int, ...]
    """Shape of the output for an image; its last axis has the classes."""
    run: Run
    """Computes the outputs for a batch of images."""

    @property
    def num_classes(self) -> int:
        """Number of classes, or of outputs per image."""
        return self.output_shape[-1]


def input_names(model: keras.Model) -> list[str]:
    """Return the names of a model's inputs in exported files: `images` if there is one."""
    return ["images"] if len(model.inputs) == 1 else _plain(names_of_inputs(model))


def output_names(model: keras.Model) -> list[str]:
    """Return the names of a model's outputs in exported files: `outputs` if there is one."""
    return ["outputs"] if len(model.outputs) == 1 else _plain(names_of_outputs(model))


def open_program(path: Path) -> Program:
    """Open the folder of a SavedModel, a .tflite or a .onnx file. They are programs: open only files that you trust.

    Raises:
        ModelError: If the file cannot be opened.
        UserError: If the file is .onnx and onnxruntime is not installed.
    """
    openers = {".tflite": _open_tflite, ".onnx": _open_onnx}
    if not path.exists():
        raise ModelError(f"model {path}: there is no such file")
    try:
        return (_open_saved_model if path.is_dir() else openers[path.suffix])(path)
    except UserError:
        raise
    except Exception as error:  # each library has its own classes of errors
        raise ModelError(
            f"model {path}: cannot be opened ({one_line(error, 160)}); export it again with `resrep export`"
        ) from None


def program_of(model: keras.Model) -> Program:
    """Return a Keras model as a `Program`."""
    names = input_names(model), output_names(model)
    function = tf.function(
        lambda inputs: tf.nest.flatten(model(tf.nest.pack_sequence_as(model.input, inputs), training=False)),
        reduce_retracing=True,
    )

    def run(inputs: Arrays) -> Arrays:
        outputs = function([tf.constant(inputs[name]) for name in names[0]])
        return {name: output.numpy() for name, output in zip(names[1], outputs, strict=True)}

    shapes = [[tuple(tensor.shape[1:]) for tensor in tensors] for tensors in (model.inputs, model.outputs)]
    return Program(dict(zip(names[0], shapes[0], strict=True)), dict(zip(names[1], shapes[1], strict=True)), run)


def open_model_file(path: Path) -> Inference:
    """Open a classifier: a Keras file (.h5, .keras), the folder of a SavedModel, a .tflite or a .onnx file.

    A Keras file is read as data. The other formats are programs: open only files that you trust.

    Raises:
        ModelError: If the file cannot be opened, or does not have exactly one input and one output.
        UserError: If the file is .onnx and onnxruntime is not installed.
    """
    if path.is_dir() or path.suffix in (".tflite", ".onnx"):
        return with_one_output(open_program(path), str(path))
    return from_keras(load_model(path))


def from_keras(model: keras.Model) -> Inference:
    """Return a Keras model with one input and one output as an `Inference`."""
    return with_one_output(program_of(model), model.name)


def with_one_output(program: Program, name: str) -> Inference:
    """Return a program with one input and one output as an `Inference`; `name` is for the message of the ModelError."""
    if len(program.input_shapes) != 1 or len(program.output_shapes) != 1:
        raise ModelError(
            f"model {name}: it has {len(program.input_shapes)} inputs and {len(program.output_shapes)} outputs "
            f"({', '.join(program.output_shapes)}), expected one of each"
        )
    ((of_input, input_shape),), ((of_output, output_shape),) = (
        shapes.items() for shapes in (program.input_shapes, program.output_shapes)
    )
    run = lambda images: program.run({of_input: images})[of_output]  # noqa: E731
    return Inference(tuple(map(int, input_shape)), tuple(map(int, output_shape)), run)  # type: ignore[arg-type]


def _plain(names: Sequence[str]) -> list[str]:
    """Return names that every format can hold."""
    plain = [re.sub(r"\W", "_", name) for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{name}_{number}" for number, name in enumerate(plain)]


def load_any_model(path: Path, image_size: int, num_classes: int, task: str = "classification") -> keras.Model:
    """Load a model file of any format as a Keras model.

    The outputs of an exported file are turned into logits (see `as_keras_model`); those of a Keras file are as saved.

    Args:
        path: The file, or the folder of a SavedModel.
        image_size: Height and width of the images, pixels.
        num_classes: Number of classes.
        task: What its outputs say; see `Config.task`.

    Raises:
        ModelError: As `open_model_file`, and if the model is for other images or classes.
        UserError: As `open_model_file`.
    """
    is_exported = path.is_dir() or path.suffix in (".tflite", ".onnx")
    model = as_keras_model(open_model_file(path), task) if is_exported else load_model(path, open_size=image_size)
    received, expected = (*model.input_shape[1:], model.output_shape[-1]), (image_size, image_size, 3, num_classes)
    if received != expected:
        raise ModelError(
            f"model {path}: it takes images of {received[:-1]} and has {received[-1]} classes, expected "
            f"{expected[:-1]} and {num_classes}, from model.image_size and model.num_classes; give the configuration "
            "that it was trained with"
        )
    return model


def as_keras_model(inference: Inference, task: str = "classification") -> keras.Model:
    """Return a Keras model that calls `inference.run` and whose outputs are logits.

    If the outputs for random images of several scales are probabilities, the model returns logits of the same
    probabilities: their logarithms, or with `multilabel` those of p / (1 - p).

    Args:
        inference: The open file.
        task: What its outputs say; see `Config.task`.
    """
    outputs = inference.run(_noise(inference.input_shape))
    is_of_labels = task == "multilabel"
    # In eight bits a probability is rounded to 1/256.
    tolerance = 1e-2 + inference.num_classes / 512
    is_sum_right = outputs.max() <= 1 if is_of_labels else np.allclose(outputs.sum(-1), 1, atol=tolerance)
    is_sum_right = is_sum_right and outputs.max() <= 1.01
    is_probability = bool(outputs.min() >= 0 and is_sum_right)

    def call(images: tf.Tensor) -> tf.Tensor:
        outputs = tf.numpy_function(inference.run, [images], tf.float32, stateful=False)
        outputs = tf.ensure_shape(outputs, [None, *inference.output_shape])
        if is_probability and is_of_labels:
            outputs = tf.clip_by_value(outputs, 1e-7, 1.0 - 1e-7)
            return tf.math.log(outputs) - tf.math.log1p(-outputs)
        return tf.math.log(tf.maximum(outputs, 1e-30)) if is_probability else outputs

    inputs = keras.Input(inference.input_shape)
    return keras.Model(inputs, keras.layers.Lambda(call)(inputs), name="file")


def _noise(shape: Sequence[int]) -> np.ndarray:
    """Return random images of several scales and colors: only probabilities stay what they are for all of them.

    Logits may lie between 0 and 1 for noise of one scale, which is almost the same image to a model that averages it.
    """
    random, colors = np.random.default_rng(0), (1,) * (len(shape) - 1) + (shape[-1],)
    noise = [scale * (random.normal(size=(4, *shape)) + random.normal(size=(4, *colors))) for scale in _NOISE_SCALES]
    return np.concatenate(noise).astype(np.float32)


def _open_saved_model(path: Path) -> Program:
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    inputs = {spec.name: tuple(spec.shape[1:]) for spec in function.structured_input_signature[1].values()}
    outputs = {name: tuple(spec.shape[1:]) for name, spec in function.structured_outputs.items()}

    def run(arrays: Arrays) -> Arrays:
        # `loaded` owns the variables, so it must exist as long as the function.
        received = loaded.signatures["serving_default"](**{name: tf.constant(arrays[name]) for name in inputs})
        return {name: received[name].numpy() for name in outputs}

    return Program(inputs, outputs, run)


def _open_tflite(path: Path) -> Program:
    def interpreter_of(arrays: Arrays | None = None) -> Any:
        interpreter = Interpreter(str(path), num_threads=visible_cores())
        if arrays is not None:
            for name, details in inputs.items():
                interpreter.resize_tensor_input(details["index"], arrays[name].shape)
            interpreter.allocate_tensors()
        return interpreter

    runner = interpreter_of().get_signature_runner()
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    # One interpreter per batch size, so that none is resized after it has run.
    interpreters: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run_part(arrays: Arrays) -> Arrays:
        shapes = tuple(arrays[name].shape for name in inputs)
        if shapes not in interpreters:
            with _first_time_quietly():
                interpreters[shapes] = interpreter_of(arrays)
        interpreter = interpreters[shapes]
        for name, details in inputs.items():
            interpreter.set_tensor(details["index"], arrays[name])
        interpreter.invoke()
        return {name: np.array(interpreter.get_tensor(details["index"])) for name, details in outputs.items()}

    encodings = {
        name: Encoding(np.dtype(details["dtype"]).name, *details["quantization"])
        for name, details in {**inputs, **outputs}.items()
        if np.issubdtype(details["dtype"], np.integer)
    }

    def run(arrays: Arrays) -> Arrays:
        starts = range(0, len(next(iter(arrays.values()))), _MAX_TFLITE_SAMPLES)
        parts = [
            run_part({name: a[start : start + _MAX_TFLITE_SAMPLES] for name, a in arrays.items()}) for start in starts
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    shapes: list[dict[str, Shape]] = [
        {name: tuple(map(int, d["shape"][1:])) for name, d in side.items()} for side in (inputs, outputs)
    ]
    return Program(shapes[0], shapes[1], in_numbers(run, encodings), encodings, run if encodings else None)


@contextlib.contextmanager
def _first_time_quietly() -> Iterator[None]:
    """Leave out the line in which the library says which kernels it uses, when a first model is made ready."""
    with without_lines(_LINES_OF_TFLITE) if _LINES_OF_TFLITE else contextlib.nullcontext():
        yield
    _LINES_OF_TFLITE.clear()


def _open_onnx(path: Path) -> Program:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnx: {error}; install it with `pip install 'resrep-dist[onnx]'`") from None
    session = onnxruntime.InferenceSession(str(path), onnx_options(visible_cores()), providers=["CPUExecutionProvider"])
    shapes = [
        {value.name: tuple(value.shape[1:]) for value in side} for side in (session.get_inputs(), session.get_outputs())
    ]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(shapes[1], session.run(None, {name: arrays[name] for name in shapes[0]}), strict=True))

    encodings = encodings_from(session.get_modelmeta().custom_metadata_map.get(ENCODINGS_KEY))
    require_encodings(path, {v.name: v.type for v in (*session.get_inputs(), *session.get_outputs())}, encodings)
    return Program(shapes[0], shapes[1], in_numbers(run, encodings), encodings, run if encodings else None)
