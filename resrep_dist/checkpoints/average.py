"""An exponential moving average of the weights, kept beside a model in training.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, for the idea;
`tf.train.ExponentialMovingAverage` for the form, with its `num_updates`.
"""

from collections.abc import Sequence
from typing import Any

from resrep_dist.checkpoints.variables import batch_norm_statistics, model_variables, plain_name, variable_names
from resrep_dist.graph import copy_weights, rebuild

import tensorflow as tf
from tensorflow import keras

AVERAGE = "average/"
"""What the names of the averages in a checkpoint begin with."""


class WeightAverage:
    """The average of the weights of a model in training, held by a model of the same shape.

    In each good step: average = average + rate (weight - average), where rate = 1 - min(decay, (1 + n) / (10 + n)) in
    step n. So a short run averages over about its last tenth, and the first steps do not remain.

    Batch-norm statistics are averaged like weights. The mean of what a convolution returns is linear in its kernel, so
    the averaged means are those of the averaged kernels, while the current ones would be ahead of them. The statistics
    follow the weights with a delay of their own, and the same delay is added to both.

    Masked rows of compactors are not averaged but follow the weights. So a row is dead here in the same step.

    Attributes:
        model: The model that holds the average. Its weights that are not averaged, such as masks, are those of the
            model in training at the last `complete`.
        decay: Share of the average that is left after a step, once enough steps are made.
        variables: The averaged variables by the names of their weights.

    Args:
        source: The model in training, flat.
        decay: See the attribute.
        model: A model of the same shape whose weights are the average. None for a copy of `source`.
    """

    def __init__(self, source: keras.Model, decay: float, model: keras.Model | None = None) -> None:
        if model is None:
            model = rebuild(source)
            copy_weights(source, model)
        self.model, self.decay, self._source = model, decay, source
        own = model_variables(model)
        self.variables: dict[str, tf.Variable] = {name: own[name] for name in averaged_variables(source)}
        self._others = {name: variable for name, variable in own.items() if name not in self.variables}

    def update(self, compactors: Sequence[Any], num_steps: tf.Tensor, is_good: tf.Tensor) -> None:
        """Take in the weights after a step, inside it. Without a branch, see `ResRepOptimizer.apply_gradients`.

        Args:
            compactors: The compactor layers of the model in training.
            num_steps: Number of steps made, with this one, a scalar.
            is_good: False if the step was skipped: the average stays as it is. A scalar bool.
        """
        masks = {plain_name(compactor.kernel): compactor.mask for compactor in compactors}
        with tf.name_scope("weight_average"):
            number = tf.cast(num_steps, tf.float64)
            kept = tf.minimum(tf.constant(self.decay, tf.float64), (1.0 + number) / (10.0 + number))
            rate = (1.0 - kept) * tf.cast(is_good, tf.float64)
            for name, weight in averaged_variables(self._source).items():
                average = self.variables[name]
                of_weight, behind = tf.cast(rate, average.dtype), average - weight
                if name in masks:
                    is_masked = masks[name] == 0
                    behind *= tf.where(is_masked, tf.cast(is_good, average.dtype), of_weight)
                    of_weight = tf.ones([], average.dtype)
                # average = average - rate * behind, in one operation.
                tf.raw_ops.ResourceApplyGradientDescent(var=average.handle, alpha=of_weight, delta=behind)

    def complete(self) -> keras.Model:
        """Set the weights that are not averaged to those of the model in training, and return the model."""
        source = model_variables(self._source)
        for name, variable in self._others.items():
            variable.assign(source[name])
        return self.model


def averaged_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Return the variables of a model that are averaged, by name: weights, and batch-norm statistics.

    Weights of frozen layers are among them. While nothing changes them, they are their own average. But when channels
    leave, the model in training and the average each take up what their own channels added.

    Args:
        model: A functional Keras model.
    """
    # Keras freezes layers. Of a variable `trainable` says what it is for.
    names, weights = variable_names(model), [variable for variable in model.weights if variable.trainable]
    return {names[variable.ref()]: variable for variable in [*weights, *batch_norm_statistics(model)]}


def evaluated_variables(model: keras.Model, is_averaged: bool) -> dict[str, tf.Variable]:
    """Return the variables of a model by the names of the arrays in a checkpoint that its evaluated values have.

    Args:
        model: A functional Keras model.
        is_averaged: True if the run averages its weights, so that the checkpoint holds their average.
    """
    averaged = averaged_variables(model) if is_averaged else {}
    return {f"{AVERAGE}{name}" if name in averaged else name: v for name, v in model_variables(model).items()}
