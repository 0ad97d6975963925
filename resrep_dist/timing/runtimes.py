"""Opens model files in a runtime, ready to be timed: what is timed is the runtime alone, without copying images."""

import importlib
import operator
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

Run = Callable[[], Any]
"""One forward pass of a batch."""
# Packages with an interpreter of TFLite, the modules that have it, and where in them.
_INTERPRETERS = {
    "ai-edge-litert": ("ai_edge_litert.interpreter", "Interpreter"),
    "tflite-runtime": ("tflite_runtime.interpreter", "Interpreter"),
    "tensorflow-lite": ("tensorflow", "lite.Interpreter"),
}
PACKAGES = {"onnx": ["onnxruntime"], "tflite": list(_INTERPRETERS)}
"""For each runtime what it may be called in the versions of a table."""


class TimingError(ValueError):
    """Something is missing or broken. The message is one line and says how to fix it."""


def require_runtime(runtime: str) -> dict[str, str]:
    """Check that a runtime is there; return the versions of its package and of numpy.

    Args:
        runtime: `onnx` or `tflite`.

    Raises:
        TimingError: If it is not installed.
    """
    if runtime == "tflite":
        _, package, version = _interpreter()
        return {package: version, "numpy": np.__version__}
    try:
        import onnxruntime
    except ImportError as error:
        raise TimingError(
            f"runtime onnx: onnxruntime is missing ({error}); install it with `pip install onnxruntime`"
        ) from None
    return {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}


def open_file(runtime: str, data: bytes, batch_size: int, num_threads: int) -> Run:
    """Return a forward pass of a model on noise.

    Args:
        runtime: `onnx` or `tflite`.
        data: The model's file.
        batch_size: Number of images, unless the file says it.
        num_threads: Number of threads.
    """
    return (_in_tflite if runtime == "tflite" else _in_onnx)(data, batch_size, num_threads)


def _interpreter() -> tuple[Any, str, str]:
    """Return the class, the package and the version of an interpreter of TFLite."""
    for package, (name, place) in _INTERPRETERS.items():
        try:
            module = importlib.import_module(name)
            interpreter = operator.attrgetter(place)(module)
        except (ImportError, AttributeError):
            continue
        return interpreter, package, getattr(module, "__version__", None) or metadata.version(package)
    raise TimingError(
        "runtime tflite: there is no interpreter; install one with `pip install ai-edge-litert`, or tflite-runtime, or "
        "tensorflow"
    )


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _in_tflite(data: bytes, batch_size: int, num_threads: int) -> Run:
    interpreter = _interpreter()[0](model_content=data, num_threads=num_threads)
    images = interpreter.get_input_details()[0]
    shape = (batch_size, *map(int, images["shape"][1:]))
    interpreter.resize_tensor_input(images["index"], shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(images["index"], _noise(shape))
    run: Run = interpreter.invoke
    return run


def onnx_options(num_threads: int) -> Any:
    """Return the settings of a session of ONNX Runtime that takes turns with others.

    Args:
        num_threads: Number of threads.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    # Otherwise the idle threads of a session keep cores busy for a while, in which others are timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _in_onnx(data: bytes, batch_size: int, num_threads: int) -> Run:
    import onnxruntime

    options = onnx_options(num_threads)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0]
    binding = session.io_binding()
    noise = _noise((batch_size, *images.shape[1:]))
    binding.bind_cpu_input(images.name, noise)
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def run() -> Any:
        assert noise is not None  # the binding does not own it
        session.run_with_iobinding(binding)

    return run
