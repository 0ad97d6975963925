"""Converts arithmetic on Keras tensors (`x + y`, `0.5 * x`, `tf.nn.relu(x)`) to stock layers."""

from collections.abc import Callable
from typing import Any

from resrep_dist.graph.tensor_functions import function_as_layer, is_symbolic

import numpy as np
import tensorflow as tf
from tensorflow import keras

_layers = keras.layers
# A number, or one for each channel.
Number = float | np.ndarray
_WITH_NUMBER: dict[str, Callable[[Any], keras.layers.Layer]] = {
    "add": lambda number: _layers.Rescaling(1.0, offset=_plain(number)),
    "subtract": lambda number: _layers.Rescaling(1.0, offset=_plain(-number)),
    "multiply": lambda number: _layers.Rescaling(_plain(number)),
    "truediv": lambda number: _layers.Rescaling(_plain(1.0 / number)),
}
_OF_TWO: dict[str, type[keras.layers.Layer]] = {
    "add": _layers.Add,
    "subtract": _layers.Subtract,
    "multiply": _layers.Multiply,
    "maximum": _layers.Maximum,
    "minimum": _layers.Minimum,
}
_OF_ONE: dict[str, Callable[[], keras.layers.Layer]] = {
    "nn.relu": _layers.ReLU,
    "nn.relu6": lambda: _layers.ReLU(6.0),
    "math.sigmoid": lambda: _layers.Activation("sigmoid"),
    "math.tanh": lambda: _layers.Activation("tanh"),
    "nn.silu": lambda: _layers.Activation("swish"),
    "nn.elu": lambda: _layers.Activation("elu"),
    "nn.selu": lambda: _layers.Activation("selu"),
    "math.softplus": lambda: _layers.Activation("softplus"),
    "nn.leaky_relu": lambda: _layers.LeakyReLU(0.2),
    "nn.softmax": lambda: _layers.Softmax(),
    "identity": lambda: _layers.Activation("linear"),
    "math.negative": lambda: _layers.Rescaling(-1.0),
}
_COMMUTES = ("add", "multiply")


def operator_as_layer(node: Any) -> keras.layers.Layer | None:
    """Return a new stock layer that computes the same as a call of a TensorFlow operator.

    Args:
        node: Keras' record of the call.

    Returns:
        The layer, to be called on the tensors among the operator's arguments. None if the call is not one of a
        TensorFlow operator or there is no such layer.
    """
    if type(node.layer).__name__ != "TFOpLambda":
        return None
    symbol = node.layer.get_config()["function"].removesuffix("_v2")
    if (layer := function_as_layer(symbol, node)) is not None:
        return layer
    operator = symbol.split(".")[-1].removeprefix("r") if "__operators__" in symbol else symbol.split(".")[-1]
    arguments = [value for value in [*node.call_args, *node.call_kwargs.values()] if value is not None]
    tensors = [value for value in arguments if is_symbolic(value)]
    numbers = [number for value in arguments if (number := _as_number(value, tensors)) is not None]
    if len(tensors) + len(numbers) != len(arguments):
        return None
    if len(tensors) == 1 and len(numbers) == 1 and operator in _WITH_NUMBER:
        is_first = is_symbolic(node.call_args[0])
        if operator == "subtract" and not is_first:
            return _layers.Rescaling(-1.0, offset=_plain(numbers[0]))
        return _WITH_NUMBER[operator](numbers[0]) if is_first or operator in _COMMUTES else None
    if len(tensors) == 1 and all(isinstance(number, float) for number in numbers):
        layer = _with_settings(symbol, [float(number) for number in numbers])
        if layer is not None:
            return layer
    if len(tensors) == 2 and not numbers and operator in _OF_TWO and _have_same_rank(tensors):
        return _OF_TWO[operator]()
    if len(tensors) == 1 and not numbers and symbol in _OF_ONE:
        return _OF_ONE[symbol]()
    return None


def _with_settings(symbol: str, numbers: list[float]) -> keras.layers.Layer | None:
    """Return the layer of a function of one tensor with numbers as its settings."""
    if symbol == "nn.softmax" and numbers == [-1.0]:
        return _layers.Softmax()
    if symbol == "nn.leaky_relu" and len(numbers) == 1:
        return _layers.LeakyReLU(numbers[0])
    if symbol == "clip_by_value" and len(numbers) == 2 and numbers[0] == 0.0 < numbers[1]:
        return _layers.ReLU(numbers[1])
    return None


def _plain(number: Number) -> float | list[float]:
    return number.tolist() if isinstance(number, np.ndarray) else number


def _as_number(value: Any, tensors: list[Any]) -> Number | None:
    """Return a number, or an array with one for each channel of the tensor; None for other values.

    TensorFlow may have made a tensor of it (the 2 of `2 * x`).
    """
    if is_symbolic(value) or isinstance(value, bool | str):
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, NotImplementedError):
        return None
    if array.ndim == 0:
        return float(array)
    is_per_channel = len(tensors) == 1 and array.shape == (tensors[0].shape[-1],)
    return array if is_per_channel else None


def _have_same_rank(tensors: list[tf.Tensor]) -> bool:
    """Keras layers broadcast like NumPy only over tensors of the same rank."""
    return len({tensor.shape.rank for tensor in tensors}) == 1
