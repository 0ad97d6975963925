"""The variables of a model, and their names in checkpoints and messages."""

import tensorflow as tf
from tensorflow import keras


def model_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Return the weights, batch-norm statistics and masks of a model by name.

    Args:
        model: A functional Keras model.
    """
    variables = {plain_name(variable): variable for variable in model.weights}
    assert len(variables) == len(model.weights), "layer names are unique in a functional model"
    return variables


def batch_norm_statistics(model: keras.Model) -> list[tf.Variable]:
    """Return the running means and variances of all batch norms, also of those inside other layers.

    Args:
        model: A Keras model.
    """
    return [
        variable
        # Unlike `layers`, this includes layers inside other layers.
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def plain_name(variable: tf.Variable) -> str:
    """Return the name of a variable as it is in checkpoints and messages.

    Args:
        variable: A variable.
    """
    return variable.name.removesuffix(":0")
