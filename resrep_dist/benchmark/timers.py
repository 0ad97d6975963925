"""Makes models ready to be timed in a runtime: what is timed is the runtime alone, without copying images into it."""

import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from resrep_dist.config.target import Runtime
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import UserError
from resrep_dist.export.convert import FORMATS, OPSET
from resrep_dist.graph.latency_table import PACKAGES

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow import keras

Run = Callable[[], Any]
"""One forward pass of a batch."""


def require_runtime(runtime: Runtime, num_threads: int) -> dict[str, str]:
    """Check that a runtime is there and can use so many threads; return the versions of its packages.

    Args:
        runtime: The runtime.
        num_threads: Number of threads.

    Raises:
        UserError: If it is not installed, or TensorFlow has started with another number of threads.
    """
    if runtime == "keras" and num_threads != visible_cores():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            raise UserError(
                f"--threads {num_threads}: TensorFlow has started already with another number; measure in a new process"
            ) from None
    package = PACKAGES[runtime]
    names = [package, "numpy", *(["tf2onnx", "onnx"] if runtime == "onnx" else ["tensorflow"])]
    versions = {name: version for name in names if (version := _version(name))}
    if runtime == "keras":
        versions[package] = tf.__version__
    if package not in versions:
        raise UserError(f"--runtime {runtime}: {package} is missing; install it with `pip install 'resrep-dist[onnx]'`")
    return versions


def whole_model(model: keras.Model, runtime: Runtime, batch_size: int, num_threads: int) -> Run:
    """Return a forward pass of a model, in the form in which `resrep export` writes it.

    Args:
        model: A model with one input.
        runtime: The runtime.
        batch_size: Number of images.
        num_threads: Number of threads.

    Raises:
        UserError: If the converter is not installed.
    """
    images = _noise((batch_size, *model.input_shape[1:]))
    if runtime == "keras":
        return _in_keras(model, images)
    with tempfile.TemporaryDirectory() as folder:
        name, convert, _ = FORMATS[runtime]
        convert(model, Path(folder) / name)
        data = (Path(folder) / name).read_bytes()
    return _in_tflite(data, images, num_threads) if runtime == "tflite" else _in_onnx(data, images, num_threads)


def single_layer(model: keras.Model, runtime: Runtime, batch_size: int, num_threads: int) -> Run:
    """Return a forward pass of one layer or two, in the layout that they have inside of a whole model.

    Args:
        model: The layers, each followed by a ReLU.
        runtime: The runtime.
        batch_size: Number of images.
        num_threads: Number of threads.
    """
    images = _noise((batch_size, *model.input_shape[1:]))
    if runtime == "keras":
        return _in_keras(model, images)
    if runtime == "tflite":
        return _in_tflite(_layer_in_tflite(model, images), images, num_threads)
    layers = [layer for layer in model.layers if layer.weights]
    if all(type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D) for layer in layers):
        channels_first = np.ascontiguousarray(np.moveaxis(images, -1, 1))
        return _in_onnx(_convolutions_in_onnx(layers, channels_first.shape), channels_first, num_threads)
    return whole_model(model, runtime, batch_size, num_threads)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _in_keras(model: keras.Model, images: np.ndarray) -> Run:
    function, batch = tf.function(lambda batch: model(batch, training=False), autograph=False), tf.constant(images)
    # The copy of a result waits for it.
    return lambda: tf.nest.map_structure(lambda output: output.numpy(), function(batch))


def _layer_in_tflite(model: keras.Model, images: np.ndarray) -> bytes:
    function = tf.function(lambda batch: model(batch, training=False), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec(images.shape, tf.float32))
    data: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert()
    return data


def _in_tflite(data: bytes, images: np.ndarray, num_threads: int) -> Run:
    interpreter = Interpreter(model_content=data, num_threads=num_threads)
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, images)
    return interpreter.invoke


def _in_onnx(data: bytes, images: np.ndarray, num_threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, images)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _convolutions_in_onnx(layers: Sequence[Any], shape: tuple[int, ...]) -> bytes:
    """Return convolutions with a ReLU each as an ONNX file, with channels first as inside of a whole model."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "images"
    for number, layer in enumerate(layers):
        kernel, bias = layer.get_weights()
        is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        # [height, width, C_in / groups, C_out], of a depthwise one [height, width, C, 1].
        kernel = np.moveaxis(kernel, (2, 3), (0, 1)) if is_depthwise else np.moveaxis(kernel, (3, 2), (0, 1))
        weights.append(numpy_helper.from_array(np.ascontiguousarray(kernel), f"kernel{number}"))
        weights.append(numpy_helper.from_array(bias, f"bias{number}"))
        convolution = helper.make_node(
            "Conv", [name, f"kernel{number}", f"bias{number}"], [f"values{number}"],
            kernel_shape=list(layer.kernel_size), strides=list(layer.strides), dilations=list(layer.dilation_rate),
            group=len(bias) if is_depthwise else layer.groups,
            auto_pad="SAME_UPPER" if layer.padding == "same" else "VALID",
        )  # fmt: skip
        name = f"outputs{number}"
        nodes += [convolution, helper.make_node("Relu", [f"values{number}"], [name])]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    outputs = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layers", [images], [outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
