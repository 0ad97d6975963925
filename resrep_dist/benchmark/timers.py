"""Models and layers in the forms in which runtimes take them, and ready to be timed."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from resrep_dist.config.target import Runtime
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import UserError
from resrep_dist.export.convert import FORMATS, OPSET
from resrep_dist.models.calling import with_autograph
from resrep_dist.timing import runtimes
from resrep_dist.timing.rounds import Passes
from resrep_dist.timing.runtimes import Run, open_file

import numpy as np
import tensorflow as tf
from tensorflow import keras


def require_runtime(runtime: Runtime, num_threads: int) -> dict[str, str]:
    """Check that a runtime is there and can use so many threads; return the versions of its packages.

    Args:
        runtime: The runtime.
        num_threads: Number of threads.

    Raises:
        UserError: If it is not installed, or TensorFlow has started with another number of threads.
    """
    if runtime != "keras":
        try:
            return {**require_converter(runtime), **runtimes.require_runtime(runtime)}
        except runtimes.TimingError:
            raise UserError(
                f"--runtime {runtime}: onnxruntime is missing; install it with `pip install 'resrep-dist[onnx]'`"
            ) from None
    if num_threads != visible_cores():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            raise UserError(
                f"--threads {num_threads}: TensorFlow has started already with another number; measure in a new process"
            ) from None
    return {**require_converter(runtime), "numpy": np.__version__}


def gpu_name() -> str | None:
    """Return the name of the GPU on which Keras models run here, None without one."""
    gpus = tf.config.get_visible_devices("GPU")
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "a GPU")) if gpus else None


def require_converter(runtime: Runtime) -> dict[str, str]:
    """Check that the packages that write the files of a runtime are there; return their versions.

    Args:
        runtime: The runtime.

    Raises:
        UserError: If one is not installed.
    """
    if runtime != "onnx":
        return {"tensorflow": tf.__version__}
    versions = {name: _version(name) for name in ("tf2onnx", "onnx")}
    found = {name: version for name, version in versions.items() if version}
    if missing := sorted(set(versions) - set(found)):
        raise UserError(
            f"--runtime onnx: {' and '.join(missing)} missing; install it with `pip install 'resrep-dist[onnx]'`"
        )
    return found


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
    if runtime == "keras":
        return _model_in_keras(model, batch_size)
    return open_file(runtime, model_file(model, runtime), batch_size, num_threads)


def single_layer(model: keras.Model, runtime: Runtime, batch_size: int, num_threads: int) -> Run:
    """Return a forward pass of one layer or two, in the layout that they have inside of a whole model.

    Args:
        model: The layers, each followed by a ReLU.
        runtime: The runtime.
        batch_size: Number of images.
        num_threads: Number of threads.
    """
    if runtime == "keras":
        return _layer_in_keras(model, batch_size)
    return open_file(runtime, layer_file(model, runtime, batch_size), batch_size, num_threads)


def model_file(model: keras.Model, runtime: Runtime) -> bytes:
    """Return a model as the file that `resrep export` writes.

    Args:
        model: A model with one input.
        runtime: A runtime that has files.

    Raises:
        UserError: If the converter is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        name, convert, _ = FORMATS[runtime]
        convert(model, Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def layer_file(model: keras.Model, runtime: Runtime, batch_size: int) -> bytes:
    """Return one layer or two as a file, in the layout that they have inside of a whole model.

    Args:
        model: The layers, each followed by a ReLU.
        runtime: A runtime that has files.
        batch_size: Number of images.
    """
    shape = (batch_size, *model.input_shape[1:])
    if runtime == "tflite":
        return _layer_in_tflite(model, shape)
    layers = [layer for layer in model.layers if layer.weights]
    if all(type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D) for layer in layers):
        return _convolutions_in_onnx(layers, (shape[0], shape[-1], *shape[1:-1]))
    if len(shape) == 2 and all(type(layer) is keras.layers.Dense for layer in layers):
        return _dense_in_onnx(layers, shape)
    return model_file(model, runtime)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _infer(model: keras.Model, batch: tf.Tensor) -> Any:
    return with_autograph(model, batch, training=False)


def _noise(model: keras.Model, batch_size: int) -> tf.Tensor:
    shape = (batch_size, *model.input_shape[1:])
    return tf.constant(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def _model_in_keras(model: keras.Model, batch_size: int) -> Run:
    function = tf.function(functools.partial(_infer, model), autograph=False)
    return _synchronized(functools.partial(function, _noise(model, batch_size)))


def _layer_in_keras(model: keras.Model, batch_size: int) -> Run:
    # A function for each layer, by `partial`: of one that is defined anew TensorFlow says that it is traced too often.
    function = tf.function(functools.partial(_passes, model), autograph=False)
    images = _noise(model, batch_size)
    return Passes(_synchronized(lambda number: function(images, tf.constant(number))))


def _passes(model: keras.Model, images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    # Each pass replaces the outputs of the one before, so that none can be left out.
    return tf.while_loop(
        lambda done, _: done < number,
        lambda done, _: (done + 1, _infer(model, images)),
        (tf.constant(0), tf.zeros((images.shape[0], *model.output_shape[1:]), model.outputs[0].dtype)),
        parallel_iterations=1,
    )[1]


def _synchronized(run: Callable[..., Any]) -> Callable[..., None]:
    """Return a function that ends when a GPU has done all work. To copy the outputs of a layer would take long."""
    synchronize = tf.test.experimental.sync_devices if gpu_name() else lambda: None

    def run_to_the_end(*arguments: int) -> None:
        run(*arguments)
        synchronize()

    return run_to_the_end


def _layer_in_tflite(model: keras.Model, shape: tuple[int, ...]) -> bytes:
    function = tf.function(functools.partial(_infer, model), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    data: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert()
    return data


def _dense_in_onnx(layers: Sequence[Any], shape: tuple[int, ...]) -> bytes:
    """Return dense layers with a ReLU each as an ONNX file, in the operations that the converter writes for them."""
    from onnx import helper, numpy_helper

    nodes, weights, name = [], [], "images"
    for number, layer in enumerate(layers):
        names = [f"{what}{number}" for what in ("kernel", "bias", "products", "values", "outputs")]
        weights += [
            numpy_helper.from_array(array, what) for array, what in zip(layer.get_weights(), names, strict=False)
        ]
        nodes.append(helper.make_node("MatMul", [name, names[0]], [names[2]]))
        nodes.append(helper.make_node("Add", [names[2], names[1]], [names[3]]))
        name = names[4]
        nodes.append(helper.make_node("Relu", [names[3]], [name]))
    return _onnx_file(nodes, weights, shape, name)


def _convolutions_in_onnx(layers: Sequence[Any], shape: tuple[int, ...]) -> bytes:
    """Return convolutions with a ReLU each as an ONNX file, with channels first as inside of a whole model."""
    from onnx import helper, numpy_helper

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
    return _onnx_file(nodes, weights, shape, name)


def _onnx_file(nodes: Sequence[Any], weights: Sequence[Any], shape: tuple[int, ...], output: str) -> bytes:
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    outputs = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layers", [images], [outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
