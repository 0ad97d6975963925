"""All that a run carries from step to step, by name, and its digest."""

from collections.abc import Mapping

from resrep_dist.optimizer import ResRepOptimizer

import numpy as np
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


class Digest:
    """One 64-bit digest per variable, computed where the variables are; any single flipped bit changes it."""

    def __init__(self, variables: Mapping[str, tf.Variable]) -> None:
        self.names = list(variables)
        self._compute = tf.function(lambda: tf.stack([digest(v.read_value()) for v in variables.values()]))

    def __call__(self) -> np.ndarray:
        """Int64 [number of variables], in the order of `names`."""
        return self._compute().numpy()


def as_bits(values: tf.Tensor) -> tf.Tensor:
    """The bits of any numbers as int64 [N]."""
    if values.dtype.is_floating:
        values = tf.bitcast(values, {2: tf.int16, 4: tf.int32, 8: tf.int64}[values.dtype.size])
    return tf.reshape(tf.cast(values, tf.int64), [-1])


def digest(values: tf.Tensor) -> tf.Tensor:
    """One int64 that any single flipped bit of the values changes."""
    bits = as_bits(values)
    # Odd factors: the difference that one bit makes, 2^b times an odd number, is never 0 modulo 2^64.
    return tf.reduce_sum(bits * (2 * tf.range(tf.size(bits, tf.int64), dtype=tf.int64) + 1))


def plain_name(variable: tf.Variable) -> str:
    """A variable's name as checkpoints and messages have it."""
    return variable.name.removesuffix(":0")
