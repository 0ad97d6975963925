"""Layers that keras.applications defines for its own models, and users copy: LayerScale and StochasticDepth."""

from typing import Any

import numpy as np
import tf_keras.src.applications.convnext as _convnext
from tensorflow import keras

LayerScale: Any = _convnext.LayerScale
"""Multiplies by one trained factor `gamma` for each channel, [C]."""
StochasticDepth: Any = _convnext.StochasticDepth
"""Drops a whole branch of a random part of the samples in training; nothing in inference."""


def is_copied_layer_scale(layer: keras.layers.Layer) -> bool:
    """Return True for a layer of a user that has the name, the weight and the outputs of Keras' LayerScale.

    Args:
        layer: A layer that has been called.
    """
    if type(layer).__name__ != "LayerScale" or type(layer) is LayerScale or len(layer.weights) != 1:
        return False
    factors = layer.get_weights()[0]
    if factors.ndim != 1:
        return False
    rank = len(layer.get_input_shape_at(0))
    probe = np.linspace(-2.0, 2.0, 2 * len(factors), dtype=np.float32).reshape([2, *[1] * (rank - 2), -1])
    return bool(np.allclose(layer(probe), probe * factors, rtol=1e-6, atol=1e-6))


def as_layer_scale(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """Return Keras' LayerScale, not built yet, in place of a user's copy.

    Args:
        layer: A layer for which `is_copied_layer_scale` is True.
        name: Name of the new layer.
    """
    width = layer.weights[0].shape[-1]
    return LayerScale(1.0, width, name=name, trainable=layer.trainable, dtype=layer.dtype_policy)
