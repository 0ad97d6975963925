"""Finds and removes a softmax at the end of a model."""

from typing import Any

from tensorflow import keras


def ends_in_softmax(model: keras.Model) -> bool:
    """Return True if the last layer of a model is, or ends in, a softmax."""
    last: Any = model.layers[-1] if model.layers else None
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def without_softmax(model: keras.Model) -> keras.Model:
    """Return a model without its softmax; the model itself if it has none at its end.

    The layers are shared with `model`, except for a last layer with a built-in softmax, which is copied.
    """
    if not ends_in_softmax(model):
        return model
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax | keras.layers.Activation):
        return keras.Model(model.inputs, last.input, name=model.name)
    linear = last.__class__.from_config({**last.get_config(), "activation": "linear"})
    result = keras.Model(model.inputs, linear(last.input), name=model.name)
    linear.set_weights(last.get_weights())
    return result
