"""The variables of a model, and their names in checkpoints and messages."""

import itertools
from typing import Any

from resrep_dist.layers.sync_batch_norm import AnyBatchNormalization

import tensorflow as tf
from tensorflow import keras


def model_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Return the weights, batch-norm statistics and masks of a model by name.

    Args:
        model: A functional Keras model.
    """
    variables: dict[str, tf.Variable] = {}
    for variable in model.weights:
        name = plain_name(variable)
        # Keras gives all weights of a layer that were added without a name the same one.
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        variables[next(free for free in names if free not in variables)] = variable
    return variables


def variable_names(model: keras.Model) -> dict[Any, str]:
    """Return the names that the variables of a model have in `model_variables`, by their references (`ref`).

    Args:
        model: A functional Keras model.
    """
    return {variable.ref(): name for name, variable in model_variables(model).items()}


def batch_norm_statistics(model: keras.Model) -> list[tf.Variable]:
    """Return the running means and variances of all batch norms, also of those inside other layers.

    Args:
        model: A Keras model.
    """
    return [
        variable
        # Unlike `layers`, this includes layers inside other layers.
        for layer in model._flatten_layers()
        if isinstance(layer, AnyBatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def plain_name(variable: tf.Variable) -> str:
    """Return the name of a variable as it is in messages, and in checkpoints if no other one of its model has it.

    Args:
        variable: A variable.
    """
    return variable.name.removesuffix(":0")
