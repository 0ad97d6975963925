"""Calls a model in a graph that is traced without AutoGraph."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import keras


def call_model(model: keras.Model, inputs: Any, training: bool) -> Any:
    """Return the outputs of a model, whose layers may branch on values.

    In a `tf.function` without AutoGraph, Keras would not apply it to the layers of users either.

    Args:
        model: The model.
        inputs: A batch of its inputs.
        training: True for training, False for inference.
    """
    return _converted()(model, inputs, training)


@functools.cache
def _converted() -> Callable[..., Any]:
    converted: Callable[..., Any] = tf.autograph.to_graph(_call)
    return converted


def _call(model: keras.Model, inputs: Any, training: bool) -> Any:
    return model(inputs, training=training)
