"""SGD with momentum for a whole model, with the rule of ResRep for its compactors."""

import logging
from collections import UserList
from collections.abc import Iterable, Sequence
from typing import Any

from resrep_dist.distributed.buckets import sum_in_buckets
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ModelError, UserError
from resrep_dist.layers.compactor import Compactor, GroupLasso
from resrep_dist.pruning.rules import row_norms, update_compactor

import numpy as np
import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)


@keras.utils.register_keras_serializable("resrep_dist")
class ResRepOptimizer(keras.optimizers.Optimizer):
    """SGD with momentum: v = momentum v + G + decay w, then w = w - learning_rate v, as in the authors' code.

    For a compactor, G is the reset gradient with the lasso penalty (section 3.3). It has its own momentum and no weight
    decay. For all other weights G is the gradient of the objective. Only weights of two and more dimensions decay, so
    biases and batch norms do not. A weight with a constraint is projected after its update, as by Keras' optimizers.

    The trainer averages gradients and row norms over the ranks before it calls the optimizer. In `fit` the optimizer
    averages them itself, in a few collectives of `cluster`. If averaged gradients are not finite, all ranks skip the
    step.

    Keras' own SGD multiplies the gradient by the learning rate before it adds it to v. That is another rule if the
    learning rate changes.

    Args:
        learning_rate: A number or a Keras schedule.
        compactors: The compactors of the model.
        momentum: Momentum of all weights but the compactors.
        decay: Strength of the weight decay.
        lasso_strength: lambda of the penalty (section 3.3).
        kept_lasso_strength: lambda of the rows that are not masked; None for the same.
        compactor_momentum: Momentum of the compactors.
        rule: Update of masked rows: `radial` or `paper`, see `update_compactor`.
        cluster: The ranks to average over in `fit`; None for one rank.
        name: Name of the optimizer.

    Raises:
        ValueError: If the rule is unknown.
        ModelError: If a compactor has a GroupLasso, which would add the penalty twice.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        compactors: Sequence[Compactor] = (),
        *,
        momentum: float = 0.9,
        decay: float = 1e-4,
        lasso_strength: float = 1e-4,
        kept_lasso_strength: float | None = None,
        compactor_momentum: float = 0.99,
        rule: str = "radial",
        cluster: Cluster | None = None,
        name: str = "ResRepOptimizer",
    ) -> None:
        super().__init__(name=name, jit_compile=False)
        if rule not in ("radial", "paper"):
            raise ValueError(f"rule: received {rule!r}, expected 'radial' or 'paper'")
        for compactor in compactors:
            if isinstance(compactor.kernel_regularizer, GroupLasso):
                raise ModelError(
                    f"compactor {compactor.name}: it has a GroupLasso, and ResRepOptimizer adds the same penalty; "
                    "leave out one of them"
                )
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.cluster = cluster
        # No list: Keras would save the compactors as a part of the optimizer, and not find them in the model again.
        self.compactors: Sequence[Compactor] = UserList(compactors)
        self._num_lost = 0
        # Not one of the optimizer's variables, which Keras saves.
        self.num_skipped_in_a_row = tf.Variable(0, trainable=False, dtype=tf.int64, name="num_skipped_in_a_row")
        self.momentum, self.decay = momentum, decay
        self.lasso_strength, self.kept_lasso_strength = lasso_strength, kept_lasso_strength
        self.compactor_momentum, self.rule = compactor_momentum, rule

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Create the velocities.

        Args:
            var_list: The trainable variables. Each gets one velocity, initially 0.
        """
        super().build(var_list)
        if not hasattr(self, "velocities"):
            self.velocities = [self.add_variable_from_reference(v, "velocity") for v in var_list]
            self._velocity_of = dict(zip((v.ref() for v in var_list), self.velocities, strict=True))

    def for_model(self, model: keras.Model) -> "ResRepOptimizer":
        """Create an optimizer with the same settings, and velocities of 0, for another model of the same run.

        Args:
            model: A model that has compactors of the same names, or no compactors any more.
        """
        names = {layer.name for layer in model.layers}
        return ResRepOptimizer(
            self._learning_rate,
            [model.get_layer(compactor.name) for compactor in self.compactors if compactor.name in names],
            momentum=self.momentum,
            decay=self.decay,
            lasso_strength=self.lasso_strength,
            kept_lasso_strength=self.kept_lasso_strength,
            compactor_momentum=self.compactor_momentum,
            rule=self.rule,
            cluster=self.cluster,
        )

    def row_norms(self) -> list[tf.Tensor]:
        """Return the row norms of each compactor on this rank, [D_out]."""
        with tf.name_scope("resrep_norms"):
            return [row_norms(compactor.kernel)[0, 0] for compactor in self.compactors]

    def lasso_term(self) -> float:
        """Return the penalty: the sum of all row norms, each times its strength."""
        of_masked = self.lasso_strength
        of_kept = of_masked if self.kept_lasso_strength is None else self.kept_lasso_strength
        masks = [compactor.mask.numpy() for compactor in self.compactors]
        strengths = [np.where(mask == 0, of_masked, of_kept) for mask in masks]
        return float(sum(s @ norms.numpy() for s, norms in zip(strengths, self.row_norms(), strict=True)))

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[tf.Tensor, tf.Variable]],
        name: str | None = None,
        norms: Sequence[tf.Tensor] | None = None,
        is_good: tf.Tensor | bool = True,
        **kwargs: Any,
    ) -> tf.Variable:
        """Make one step.

        Args:
            grads_and_vars: Gradient and variable of all trainable variables.
            name: Not used; part of the Keras interface.
            norms: Row norms of each compactor, averaged over the ranks, [D_out]; the gradients must be averaged too.
                None to average both here, and to skip the step if an averaged gradient is not finite.
            is_good: False to skip the step: weights and velocities keep their values. A scalar bool tensor decides it
                on the device, without a branch, for which a GPU would have to wait for the host.
            **kwargs: Not used; part of the Keras interface.

        Returns:
            The number of steps, which counts skipped steps too.

        Raises:
            UserError: If the optimizer was loaded from a file and had compactors.
        """
        self._require_compactors()
        pairs = list(grads_and_vars)
        with tf.init_scope():
            self.build([variable for _, variable in pairs])
        pairs = self._with_gradient(pairs)
        if norms is not None:
            self._apply(pairs, norms, is_good)
            return self.iterations.assign_add(1)
        gradients, norms = self._average([gradient for gradient, _ in pairs])
        averaged = list(zip(gradients, (variable for _, variable in pairs), strict=True))
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        self._apply(averaged, norms, is_finite)
        self.num_skipped_in_a_row.assign(_choose(is_finite, tf.zeros([], tf.int64), self.num_skipped_in_a_row + 1))
        return self.iterations.assign_add(1)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, or without a schedule the current one.

        Args:
            step: Number of the step, counted from 0.
        """
        is_schedule = isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        return float(self._learning_rate(step) if is_schedule else self._learning_rate)

    def _with_gradient(
        self, pairs: Sequence[tuple[tf.Tensor | None, tf.Variable]]
    ) -> list[tuple[tf.Tensor, tf.Variable]]:
        """Leave out the weights that the loss does not reach, as Keras' optimizers do, but for compactors.

        The gradients are dense, since those of an embedding are slices, which the ranks cannot sum.
        """
        of_compactors = {compactor.kernel.ref() for compactor in self.compactors}
        reached = [
            (tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient), variable)
            for gradient, variable in pairs
            if gradient is not None or variable.ref() in of_compactors
        ]
        if len(reached) < len(pairs):
            left = {variable.ref() for _, variable in pairs} - {variable.ref() for _, variable in reached}
            names = sorted(reference.deref().name for reference in left)
            _log.warning(
                "%d weights have no gradient of the loss and stay as they are: %s", len(names), ", ".join(names)
            )
        return reached

    def _average(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        norms = self.row_norms()
        if self.cluster is None or self.cluster.size == 1:
            return gradients, norms
        size = self.cluster.size
        averaged = [value / size for value in sum_in_buckets(self.cluster, gradients, "optimizer")]
        if norms:
            norms = [norm / size for norm in self.cluster.sum(norms, "optimizer_norms")]
        return averaged, norms

    def _apply(
        self,
        pairs: Sequence[tuple[tf.Tensor, tf.Variable]],
        norms: Sequence[tf.Tensor],
        is_good: tf.Tensor | bool,
    ) -> None:
        gradients = {variable.ref(): gradient for gradient, variable in pairs}
        rate = self._rate()
        # The name makes the update of the compactors easy to find in a profile.
        with tf.name_scope("resrep_update"):
            self._update_compactors(gradients, norms, rate, is_good)
        of_compactors = {compactor.kernel.ref() for compactor in self.compactors}
        # In a skipped step: v = 1 v + 0, then w = w - 0 v.
        rate = _choose(is_good, tf.convert_to_tensor(rate), tf.zeros([], rate.dtype))
        momentum = _choose(is_good, tf.constant(self.momentum, tf.float64), tf.constant(1.0, tf.float64))
        for gradient, variable in pairs:
            if variable.ref() not in of_compactors:
                self._update_weight(gradient, variable, rate, momentum, is_good)

    def _rate(self) -> tf.Tensor:
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return self._learning_rate

    def _update_weight(
        self,
        gradient: tf.Tensor,
        variable: tf.Variable,
        rate: tf.Tensor,
        momentum: tf.Tensor,
        is_good: tf.Tensor | bool,
    ) -> None:
        if self.decay and variable.shape.rank > 1:
            gradient += tf.constant(self.decay, variable.dtype) * variable
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=self._velocity_of[variable.ref()].handle,
            lr=tf.cast(rate, variable.dtype),
            grad=gradient if is_good is True else tf.math.multiply_no_nan(gradient, tf.cast(is_good, gradient.dtype)),
            momentum=tf.cast(momentum, variable.dtype),
        )
        if variable.constraint is not None:
            variable.assign(_choose(is_good, variable.constraint(variable), variable))

    def _update_compactors(
        self,
        gradients: dict[Any, tf.Tensor],
        norms: Sequence[tf.Tensor],
        rate: tf.Tensor,
        is_good: tf.Tensor | bool,
    ) -> None:
        # Compactors of one shape are stacked and updated together. The update is a series of small operations; so their
        # number grows with the number of shapes, not with that of layers, and a model has few shapes.
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, compactor in enumerate(self.compactors):
            by_shape.setdefault(tuple(compactor.kernel.shape), []).append(index)
        for indices in by_shape.values():
            kernels = [self.compactors[index].kernel for index in indices]
            velocities = [self._velocity_of[kernel.ref()] for kernel in kernels]
            before = tf.stack(kernels), tf.stack(velocities)
            after = update_compactor(
                *before,
                tf.stack([gradients[kernel.ref()] for kernel in kernels]),
                tf.stack([self.compactors[index].mask for index in indices])[:, tf.newaxis, tf.newaxis],
                tf.stack([norms[index] for index in indices])[:, tf.newaxis, tf.newaxis],
                learning_rate=tf.cast(rate, kernels[0].dtype),
                lasso_strength=self.lasso_strength,
                kept_lasso_strength=self.kept_lasso_strength,
                momentum=self.compactor_momentum,
                radial=self.rule == "radial",
            )
            stacked, velocity = (_choose(is_good, *pair) for pair in zip(after, before, strict=True))
            for variable, value in zip(kernels + velocities, tf.unstack(stacked) + tf.unstack(velocity), strict=True):
                variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return the settings from which Keras builds the optimizer again; compactors and ranks are not among them."""
        return {
            "name": self.name,
            "num_compactors": len(self.compactors),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum,
            "decay": self.decay,
            "lasso_strength": self.lasso_strength,
            "kept_lasso_strength": self.kept_lasso_strength,
            "compactor_momentum": self.compactor_momentum,
            "rule": self.rule,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "ResRepOptimizer":
        """Create an optimizer from settings, for a loaded model: it can be used, and trained only without compactors.

        Args:
            config: What `get_config` returned.
            custom_objects: As in Keras.
        """
        config = dict(config)
        num_compactors = config.pop("num_compactors", 0)
        optimizer: ResRepOptimizer = super().from_config(config, custom_objects)
        optimizer._num_lost = num_compactors
        return optimizer

    def _require_compactors(self) -> None:
        if self._num_lost:
            raise UserError(
                f"the optimizer: it was loaded from a file and has lost the {self._num_lost} compactors that it "
                "trained; compile the model again with resrep_dist.ResRepOptimizer(rate, compactors)"
            )


def _choose(condition: tf.Tensor | bool, value: Any, otherwise: Any) -> Any:
    """Return one of two values of the same shape and type, as a scalar condition says."""
    if isinstance(condition, bool):
        return value if condition else otherwise
    # `tf.where` would broadcast the condition, for which a processor takes more than twice the time.
    return tf.raw_ops.Select(condition=condition, x=value, y=otherwise)


# In `.h5` files Keras writes the optimizer inside of a LossScaleOptimizer without its package.
keras.utils.get_custom_objects()["ResRepOptimizer"] = ResRepOptimizer
