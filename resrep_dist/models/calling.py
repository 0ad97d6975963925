"""Calls what users have written in a graph that is traced without AutoGraph."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def with_autograph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a model or a function that may branch on values.

    In a `tf.function` without AutoGraph, Keras would not apply it to the layers and losses of users either.

    Args:
        function: What is called.
        *args: What it is called with.
        **kwargs: What it is called with.
    """
    return _converted()(function, *args, **kwargs)


@functools.cache
def _converted() -> Callable[..., Any]:
    converted: Callable[..., Any] = tf.autograph.to_graph(_call)
    return converted


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
