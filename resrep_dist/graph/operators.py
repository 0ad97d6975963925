"""Converts arithmetic on Keras tensors (`x + y`, `0.5 * x`, `tf.nn.relu(x)`) to stock layers."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import keras

_layers = keras.layers
_WITH_NUMBER: dict[str, Callable[[float], keras.layers.Layer]] = {
    "add": lambda number: _layers.Rescaling(1.0, offset=number),
    "subtract": lambda number: _layers.Rescaling(1.0, offset=-number),
    "multiply": lambda number: _layers.Rescaling(number),
    "truediv": lambda number: _layers.Rescaling(1.0 / number),
    "leaky_relu": lambda number: _layers.LeakyReLU(number),
}
_OF_TWO: dict[str, type[keras.layers.Layer]] = {
    "add": _layers.Add,
    "subtract": _layers.Subtract,
    "multiply": _layers.Multiply,
}
_OF_ONE: dict[str, Callable[[], keras.layers.Layer]] = {
    "nn.relu": _layers.ReLU,
    "nn.relu6": lambda: _layers.ReLU(6.0),
    "math.sigmoid": lambda: _layers.Activation("sigmoid"),
    "math.tanh": lambda: _layers.Activation("tanh"),
    "nn.silu": lambda: _layers.Activation("swish"),
    "nn.elu": lambda: _layers.Activation("elu"),
    "nn.gelu": lambda: _layers.Activation("gelu"),
    "nn.selu": lambda: _layers.Activation("selu"),
    "math.softplus": lambda: _layers.Activation("softplus"),
    "nn.leaky_relu": lambda: _layers.LeakyReLU(0.2),
    "nn.softmax": lambda: _layers.Softmax(),
    "identity": lambda: _layers.Activation("linear"),
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
    operator = symbol.split(".")[-1].removeprefix("r") if "__operators__" in symbol else symbol.split(".")[-1]
    arguments = [value for value in [*node.call_args, *node.call_kwargs.values()] if value is not None]
    tensors = [value for value in arguments if is_symbolic(value)]
    numbers = [number for value in arguments if (number := _as_number(value)) is not None]
    if len(tensors) + len(numbers) != len(arguments):
        return None
    if len(tensors) == 1 and len(numbers) == 1 and operator in _WITH_NUMBER:
        is_first = is_symbolic(node.call_args[0])
        return _WITH_NUMBER[operator](numbers[0]) if is_first or operator in _COMMUTES else None
    if symbol == "nn.softmax" and numbers == [-1.0]:
        return _layers.Softmax()
    if symbol == "clip_by_value" and numbers[:1] == [0.0] and len(numbers) == 2 and numbers[1] > 0:
        return _layers.ReLU(numbers[1])
    if len(tensors) == 2 and not numbers and operator in _OF_TWO and _have_same_rank(tensors):
        return _OF_TWO[operator]()
    if len(tensors) == 1 and not numbers and symbol in _OF_ONE:
        return _OF_ONE[symbol]()
    return None


def is_symbolic(value: Any) -> bool:
    """Return True for the tensors of a functional model."""
    return hasattr(value, "_keras_history")


def _as_number(value: Any) -> float | None:
    """Return a number, also if TensorFlow has made a tensor of it (the 2 of `2 * x`); None for other values."""
    is_scalar = isinstance(value, int | float) or (isinstance(value, tf.Tensor) and value.shape.rank == 0)
    return float(value) if is_scalar and not is_symbolic(value) else None


def _have_same_rank(tensors: list[tf.Tensor]) -> bool:
    """Keras layers broadcast like NumPy only over tensors of the same rank."""
    return len({tensor.shape.rank for tensor in tensors}) == 1
