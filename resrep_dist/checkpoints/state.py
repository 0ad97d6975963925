"""The one state of a run: what a step changes, a checkpoint holds, a shrink hands on and a resume gives back."""

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
    """What the state needs of an optimizer; `ResRepOptimizer` has it."""

    iterations: tf.Variable
    velocities: Sequence[tf.Variable]
    """One for each variable that it was built for."""
    compactors: Sequence[Any]
    """The compactor layers of the model."""
    lasso_strength: float

    def row_norms(self) -> list[tf.Tensor]:
        """Row norms of the compactors on this rank, [D_out] each."""

    def apply_gradients(self, grads_and_vars: Any, *, norms: Sequence[tf.Tensor] | None = None) -> Any:
        """Update the variables, with averaged row norms."""

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Create the velocities."""

    def for_model(self, model: keras.Model) -> "Optimizer":
        """An optimizer with the same settings for another model of the same run."""


class TrainState(Mapping[str, tf.Variable]):
    """All that a run carries from step to step.

    As a mapping: every variable by its name in a checkpoint. These are weights, batch-norm statistics and masks, the
    velocity of each weight (`velocity/<weight>`), the optimizer's count of steps, and what `shared` adds.

    Attributes:
        model: the model in training; with compactors where the run prunes.
        optimizer: built for the model's trainable variables.
        channels: the original channels that the model still has; None in a run that does not prune.
        step: number of steps made, equal to `optimizer.iterations`. It is counted on the host as well, since reading
            a variable waits for the device.
        num_chosen: number of channels that the last mask update chose; see `select_masks`.

    Args:
        shared: variables that belong to the run and not to the model, such as the loss scale. Another model's state
            goes on with the same ones.
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
        """The velocity of each weight, by the weight's name."""
        return {name.removeprefix(_VELOCITY): variable for name, variable in self.items() if name.startswith(_VELOCITY)}

    def for_model(
        self, model: keras.Model, channels: KeptChannels | None, velocities: Mapping[str, np.ndarray] | None = None
    ) -> "TrainState":
        """The state of the same run at the same step, with another model.

        Args:
            model: of the same run, its weights set.
            channels: the original channels that it has.
            velocities: by the names of their weights; 0 for those that are not in it.
        """
        state = TrainState(model, self.optimizer.for_model(model), channels, self._shared)
        state.step, state.num_chosen = self.step, self.num_chosen
        state.optimizer.iterations.assign(self.optimizer.iterations)
        for name, values in (velocities or {}).items():
            state[f"{_VELOCITY}{name}"].assign(values)
        return state

    def share(self, cluster: Cluster) -> None:
        """Give all ranks the variables of rank 0; a collective."""
        cluster.broadcast(list(self.values()))

    def agree(self, cluster: Cluster) -> None:
        """Compare all variables over the ranks; a collective.

        Raises:
            DisagreementError: on every rank, with the names of the variables and the ranks that differ.
        """
        if cluster.size > 1:
            cluster.agree(self._digest.names, self._digest())


def model_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Weights, batch-norm statistics and masks by name."""
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
    """A variable's name in checkpoints and messages."""
    return variable.name.removesuffix(":0")
