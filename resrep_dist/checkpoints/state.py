"""The state of a run: changed by steps, saved in checkpoints, and passed on when the model shrinks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from resrep_dist.checkpoints.digest import Digest
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph.kept_channels import KeptChannels

import numpy as np
import tensorflow as tf
from tensorflow import keras

_VELOCITY = "velocity/"


class Optimizer(Protocol):
    """The part of an optimizer that the state uses; `ResRepOptimizer` has it."""

    iterations: tf.Variable
    """Number of steps made."""
    velocities: Sequence[tf.Variable]
    """One for each variable for which it was built."""
    compactors: Sequence[Any]
    """The compactor layers of the model."""
    lasso_strength: float
    """Strength of the penalty."""

    def row_norms(self) -> list[tf.Tensor]:
        """Return the row norms of each compactor on this rank, [D_out]."""

    def apply_gradients(
        self, grads_and_vars: Any, *, norms: Sequence[tf.Tensor] | None = None, is_good: tf.Tensor | bool = True
    ) -> Any:
        """Make one step.

        Args:
            grads_and_vars: Gradient and variable of all trainable variables.
            norms: Averaged row norms of each compactor, [D_out].
            is_good: False to keep the values of all variables but the number of steps.
        """

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Create the velocities.

        Args:
            var_list: The trainable variables.
        """

    def for_model(self, model: keras.Model) -> "Optimizer":
        """Create an optimizer with the same settings for another model of the same run.

        Args:
            model: The model.
        """


class TrainState(Mapping[str, tf.Variable]):
    """All that a run carries from step to step.

    It is a mapping of every variable by its name in a checkpoint: weights, batch-norm statistics and masks, the
    velocity of each weight (`velocity/<weight>`), the number of steps of the optimizer, and the variables of `shared`.

    Attributes:
        model: The model in training, with compactors if the run prunes.
        optimizer: Optimizer built for the model's trainable variables.
        channels: The original channels that the model still has; None in a run that does not prune.
        step: Number of steps made, equal to `optimizer.iterations`. The host counts it too, since reading a variable
            waits for the device.
        num_chosen: Number of channels that the last update of the masks chose; see `select_masks`.
        early_merge: Step and certificate of the merge during training, as JSON values; None before, and without one.

    Args:
        model: See the attribute.
        optimizer: An optimizer; it is built here.
        channels: See the attribute.
        shared: Variables that belong to the run and not to a model, such as the loss scale. States of other models of
            the run have the same variables.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Optimizer,
        channels: KeptChannels | None = None,
        shared: Mapping[str, tf.Variable] | None = None,
    ) -> None:
        self.model, self.optimizer, self.channels = model, optimizer, channels
        self.step, self.num_chosen = 0, 0
        self.early_merge: Mapping[str, Any] | None = None
        self._shared = dict(shared or {})
        optimizer.build(model.trainable_variables)
        velocities = zip(model.trainable_variables, optimizer.velocities, strict=True)
        self._variables = {
            **model_variables(model),
            **{f"{_VELOCITY}{plain_name(variable)}": velocity for variable, velocity in velocities},
            "iterations": optimizer.iterations,
            **self._shared,
        }
        self._digest = Digest(self._variables)

    def __getitem__(self, name: str) -> tf.Variable:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    @property
    def velocities(self) -> dict[str, tf.Variable]:
        """The velocity of each weight, by the name of the weight."""
        return {name.removeprefix(_VELOCITY): variable for name, variable in self.items() if name.startswith(_VELOCITY)}

    def for_model(
        self, model: keras.Model, channels: KeptChannels | None, velocities: Mapping[str, np.ndarray] | None = None
    ) -> "TrainState":
        """Create the state of the same run, at the same step, with another model.

        Args:
            model: A model of the same run, with its weights set.
            channels: The original channels that it has.
            velocities: Velocities by the names of their weights; the others are 0.
        """
        state = TrainState(model, self.optimizer.for_model(model), channels, self._shared)
        state.step, state.num_chosen, state.early_merge = self.step, self.num_chosen, self.early_merge
        state.optimizer.iterations.assign(self.optimizer.iterations)
        for name, values in (velocities or {}).items():
            state[f"{_VELOCITY}{name}"].assign(values)
        return state

    def share(self, cluster: Cluster) -> None:
        """Give all ranks the variables of rank 0. A collective.

        Args:
            cluster: The ranks.
        """
        cluster.broadcast(list(self.values()))

    def agree(self, cluster: Cluster) -> None:
        """Check that all variables are the same on all ranks. A collective.

        Args:
            cluster: The ranks.

        Raises:
            DisagreementError: On every rank, with the names of the variables and the ranks that differ.
        """
        if cluster.size > 1:
            cluster.agree(self._digest.names, self._digest())


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
