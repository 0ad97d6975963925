"""A softmax at the end of a model: found, and left out."""

from typing import Any

from tensorflow import keras


def ends_in_softmax(model: keras.Model) -> bool:
    """True where the model's outputs are probabilities."""
    last: Any = model.layers[-1] if model.layers else None
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def without_softmax(model: keras.Model) -> keras.Model:
    """The model up to its logits; `model` itself if it gives logits already.

    Layers are shared with `model`, but for a last layer with a softmax in it, which is copied.
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
