"""TensorFlow functions with settings (`tf.concat`, `tf.reduce_mean`, `tf.image.resize`) as stock layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

_layers = keras.layers
# Names of the arguments in their order.
_SIGNATURES = {
    "concat": ("values", "axis", "name"),
    "math.add_n": ("inputs", "name"),
    "math.reduce_mean": ("input_tensor", "axis", "keepdims", "name"),
    "math.reduce_max": ("input_tensor", "axis", "keepdims", "name"),
    "cast": ("x", "dtype", "name"),
    "nn.gelu": ("features", "approximate", "name"),
    "image.resize": ("images", "size", "method", "preserve_aspect_ratio", "antialias", "name"),
}


def function_as_layer(symbol: str, node: Any) -> keras.layers.Layer | None:
    """Return a new stock layer that computes the same as a call of a TensorFlow function.

    Args:
        symbol: Name of the function, without `tf.`.
        node: Keras' record of the call.

    Returns:
        The layer, to be called on the tensors among the arguments. None if there is no such layer.
    """
    if symbol not in _SIGNATURES or len(node.call_args) > len(_SIGNATURES[symbol]):
        return None
    first, *names = _SIGNATURES[symbol]
    given = dict(zip(_SIGNATURES[symbol], node.call_args, strict=False)) | node.call_kwargs
    values = given.pop(first, None)
    options = {name: value for name, value in given.items() if value is not None and name != "name"}
    if not options.keys() <= set(names):
        return None
    if symbol in ("concat", "math.add_n"):
        return _of_several(values, options)
    if not is_symbolic(values) or values.shape.rank is None:
        return None
    if symbol == "cast":
        return _layers.Activation("linear") if tf.as_dtype(options["dtype"]) == values.dtype else None
    if symbol == "nn.gelu":
        # `keras.activations.gelu(x)` calls it with False; the approximation is no activation that a file can hold.
        return None if options.get("approximate") else _layers.Activation("gelu")
    if symbol == "image.resize":
        return _resizing(values.shape, options)
    return _global_pooling(symbol.endswith("max"), values.shape.rank, options)


def is_symbolic(value: Any) -> bool:
    """Return True for the tensors of a functional model."""
    return hasattr(value, "_keras_history")


def _of_several(values: Any, options: dict[str, Any]) -> keras.layers.Layer | None:
    if not isinstance(values, list | tuple) or not all(map(is_symbolic, values)) or len(values) < 2:
        return None
    shapes = {tuple(tensor.shape) for tensor in values}
    if "axis" not in options:
        return _layers.Add() if len(shapes) == 1 else None
    axis = options["axis"]
    is_plain = isinstance(axis, int | np.integer) and axis != 0
    return _layers.Concatenate(axis=int(axis)) if is_plain and len({len(shape) for shape in shapes}) == 1 else None


def _global_pooling(is_max: bool, rank: int, options: dict[str, Any]) -> keras.layers.Layer | None:
    """Return the pooling over all axes between the samples and the channels."""
    axes = options.get("axis")
    given = list(axes) if isinstance(axes, Sequence) else [axes]
    if not all(isinstance(axis, int) for axis in given) or not 3 <= rank <= 5:
        return None
    if sorted(axis % rank for axis in given) != list(range(1, rank - 1)):
        return None
    kind = f"Global{'Max' if is_max else 'Average'}Pooling{rank - 2}D"
    return getattr(_layers, kind)(keepdims=bool(options.get("keepdims", False)))


def _resizing(shape: Any, options: dict[str, Any]) -> keras.layers.Layer | None:
    method = options.get("method", "bilinear")
    if shape.rank != 4 or options.get("antialias") or options.get("preserve_aspect_ratio"):
        return None
    if any(map(is_symbolic, np.ravel(options["size"]))):
        return None
    size = np.asarray(options["size"])
    is_plain = size.shape == (2,) and np.issubdtype(size.dtype, np.integer)
    if not is_plain or method not in ("bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian"):
        return None
    return _layers.Resizing(int(size[0]), int(size[1]), interpolation=method)
