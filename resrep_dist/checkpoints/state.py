"""All that a run carries from step to step, by name, and its digest."""

from resrep_dist.pruning.optimizer import ResRepOptimizer

import tensorflow as tf
from tensorflow import keras


def state_variables(model: keras.Model, optimizer: ResRepOptimizer) -> dict[str, tf.Variable]:
    """Weights, batch-norm statistics, masks, velocities and the step counter."""
    variables = model_variables(model)
    for variable, velocity in zip(model.trainable_variables, optimizer.velocities, strict=True):
        variables[f"velocity/{plain_name(variable)}"] = velocity
    variables["iterations"] = optimizer.iterations
    return variables


def model_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Weights, batch-norm statistics and masks."""
    variables = {plain_name(variable): variable for variable in model.weights}
    assert len(variables) == len(model.weights), "layer names are unique in a functional model"
    return variables


def batch_norm_statistics(model: keras.Model) -> list[tf.Variable]:
    """Running means and variances of all batch norms."""
    return [
        variable
        # Those inside other layers too.
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def plain_name(variable: tf.Variable) -> str:
    """A variable's name as checkpoints and messages have it."""
    return variable.name.removesuffix(":0")
