"""The state of a run: changed by steps, saved in checkpoints, and passed on when the model shrinks."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from resrep_dist.checkpoints.average import AVERAGE, WeightAverage
from resrep_dist.checkpoints.digest import Digest
from resrep_dist.checkpoints.variables import model_variables, variable_names
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph.kept_channels import KeptChannels

import numpy as np
import tensorflow as tf
from tensorflow import keras

_VELOCITY = "velocity/"
_log = logging.getLogger(__name__)


class Optimizer(Protocol):
    """The part of an optimizer that the state uses; `ResRepOptimizer` has it."""

    iterations: tf.Variable
    """Number of steps made."""
    velocities: Sequence[tf.Variable]
    """One for each variable for which it was built."""
    compactors: Sequence[Any]
    """The compactor layers of the model."""

    def row_norms(self) -> list[tf.Tensor]:
        """Return the row norms of each compactor on this rank, [D_out]."""

    def lasso_term(self) -> float:
        """Return the penalty."""

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
    velocity of each weight (`velocity/<weight>`), the average of each weight if there is one (`average/<weight>`), the
    number of steps of the optimizer, and the variables of `shared`.

    Attributes:
        model: The model in training, with compactors if the run prunes.
        optimizer: Optimizer built for the model's trainable variables.
        channels: The original channels that the model still has; None in a run that does not prune.
        step: Number of steps made, equal to `optimizer.iterations`. The host counts it too, since reading a variable
            waits for the device.
        num_chosen: Number of channels that the last update of the masks chose; see `select_masks`.
        early_merge: Step and `certificate` of the merge during training, or step and the reason why it was `refused`,
            as JSON values; None before, and without one.
        average: The average of the weights; None for a run that keeps none.

    Args:
        model: See the attribute.
        optimizer: An optimizer; it is built here.
        channels: See the attribute.
        shared: Variables that belong to the run and not to a model, such as the loss scale. States of other models of
            the run have the same variables.
        average: See the attribute.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Optimizer,
        channels: KeptChannels | None = None,
        shared: Mapping[str, tf.Variable] | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.model, self.optimizer, self.channels, self.average = model, optimizer, channels, average
        self.step, self.num_chosen = 0, 0
        self.early_merge: Mapping[str, Any] | None = None
        self._shared = dict(shared or {})
        optimizer.build(model.trainable_variables)
        names = variable_names(model)
        velocities = zip(model.trainable_variables, optimizer.velocities, strict=True)
        self._variables = {
            **model_variables(model),
            **{f"{_VELOCITY}{names[variable.ref()]}": velocity for variable, velocity in velocities},
            **{f"{AVERAGE}{name}": variable for name, variable in (average.variables if average else {}).items()},
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

    @property
    def learning_rate(self) -> float | None:
        """The learning rate of a `fit` with a number, which callbacks may change; None if it follows from the step."""
        return None if (rate := self._rate_variable()) is None else float(rate)

    def restore_learning_rate(self, saved: Any) -> None:
        """Set the learning rate of a `fit` to that of a checkpoint, if both have one.

        Args:
            saved: What `learning_rate` was; None of a checkpoint that does not have it.
        """
        rate = self._rate_variable()
        if rate is None or not isinstance(saved, float) or not 0.0 <= saved < float("inf") or saved == float(rate):
            return
        _log.warning(
            "The learning rate is %.3g, as it was at step %d of the checkpoint, and not %.3g; for another one use the "
            "callback LearningRateScheduler.",
            saved,
            int(self.optimizer.iterations.numpy()),
            float(rate),
        )
        rate.assign(saved)

    def evaluated_model(self) -> keras.Model:
        """Return the model whose outputs count: the one with averaged weights, or without them that in training."""
        return self.average.complete() if self.average else self.model

    def for_model(
        self,
        model: keras.Model,
        channels: KeptChannels | None,
        velocities: Mapping[str, np.ndarray] | None = None,
        averaged: keras.Model | None = None,
    ) -> "TrainState":
        """Create the state of the same run, at the same step, with another model.

        Args:
            model: A model of the same run, with its weights set.
            channels: The original channels that it has.
            velocities: Velocities by the names of their weights; the others are 0.
            averaged: Model of the same shape with the averaged weights; None for a run that keeps none.
        """
        average = WeightAverage(model, self.average.decay, averaged) if self.average else None
        state = TrainState(model, self.optimizer.for_model(model), channels, self._shared, average)
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

    def _rate_variable(self) -> tf.Variable | None:
        rate = getattr(self.optimizer, "_learning_rate", None)
        return rate if isinstance(rate, tf.Variable) else None
