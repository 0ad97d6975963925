"""Decides when the model in training shrinks, and creates the state with the smaller model."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import Config
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.replacement import with_precision
from resrep_dist.layers.sync_batch_norm import with_plain_batch_norm
from resrep_dist.merging.certificate import certify
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.pruning.schedule import MaskSchedule
from resrep_dist.shrinking.early_merge import calibrate, folded_layers, merged
from resrep_dist.shrinking.surgery import narrow_velocities, removable, with_channels, without_channels

import numpy as np
import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)


class Shrinker:
    """Decides when a model shrinks, and creates the smaller ones.

    Args:
        graph: Trace of the original model.
        config: The configuration of the run: mode, how much a shrink must save, how a merged model is compared.
        masks: The schedule of the masks: when a decision is made, and for how long a smaller model is of use.
        cluster: The ranks, over which the statistics of a merged model's batch norms are averaged.
    """

    def __init__(self, graph: Graph, config: Config, masks: MaskSchedule, cluster: Cluster) -> None:
        self._graph, self._config, self._merge = graph, config.shrink, config.merge
        self._masks, self._cluster = masks, cluster
        self._base_macs = graph.macs.total(graph.widths)

    def is_due(self, step: int) -> bool:
        """Return True if a shrink is considered after this step.

        Args:
            step: Number of steps made.
        """
        return self._config.mode != "off" and step % self._masks.interval_steps == 0

    def next_channels(self, state: TrainState, pruner: Pruner) -> dict[str, Any] | None:
        """Decide which channels the model keeps from now on, and whether it is merged.

        Args:
            state: The state of the run.
            pruner: Knows which channels are dead, and whether all is done.

        Returns:
            The channels as a JSON value, or None if the model stays as it is. If it would be merged and cannot be: what
            `TrainState.early_merge` is to be from now on.
        """
        assert state.channels is not None
        dead = pruner.dead()
        # A merge that was refused once is not tried again, also after a restart.
        if self._config.mode == "merge" and state.early_merge is None and pruner.is_pruned():
            return self._merged_channels(state, dead)
        # `removable` looks at every layer, which is not needed if too few channels are dead.
        if not self._is_worth(state, state.channels.without(dead)):
            return None
        channels = state.channels.without(removable(state.model, self._graph, dead))
        return dataclasses.asdict(channels) if self._is_worth(state, channels) else None

    def at(self, whole: TrainState, channels: KeptChannels) -> TrainState:
        """Create a state with the given channels, into which values can be loaded.

        Args:
            whole: The state at full width.
            channels: The channels that the model should have.

        Returns:
            A new state; `whole` itself if it has these channels.
        """
        if channels == whole.channels:
            return whole
        model = with_channels(whole.model, self._graph, channels)
        averaged = with_channels(whole.average.model, self._graph, channels) if whole.average else None
        return whole.for_model(model, channels, averaged=averaged)

    def shrink(
        self,
        state: TrainState,
        channels: KeptChannels,
        batches: Iterable[tf.Tensor],
        validation_data: ImageSource | None = None,
    ) -> TrainState:
        """Create the state of the run with a smaller model. A collective if the model is merged.

        Args:
            state: The state of the run.
            channels: The channels that the smaller model has.
            batches: This rank's images for the statistics of batch norms; used only if the model is merged.
            validation_data: A merged model is compared with the one before on its first images, on rank 0. None if
                the model is not merged.

        Returns:
            A new state; `state` itself if the outputs of the merged model differ, which is logged.
        """
        assert state.channels is not None
        dead = channels.lost_from(state.channels)
        velocities = narrow_velocities(state.model, self._graph, dead, state.velocities)
        averaged = state.evaluated_model() if state.average else None
        models = [without_channels(m, self._graph, dead) for m in (state.model, averaged) if m is not None]
        if not channels.is_merged:
            return state.for_model(models[0], channels, velocities, *models[1:])
        models = [merged(model, self._graph) for model in models]
        calibrate(models, self._graph, batches, self._cluster)
        # Folded layers begin at rest.
        folded = folded_layers(self._graph)
        velocities = {name: v for name, v in velocities.items() if name.rpartition("/")[0] not in folded}
        after = state.for_model(models[0], channels, velocities, *models[1:])
        # Each rank has folded for itself, and processors of other kinds may round differently.
        after.share(self._cluster)
        assert validation_data is not None
        outcome = self._cluster.from_root(lambda: self._prove(state, after, validation_data))
        state.early_merge = after.early_merge = outcome
        return state if "refused" in outcome else after

    def _merged_channels(self, state: TrainState, dead: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return the channels of the merged model; a refusal if dead channels would have to stay in it."""
        assert state.channels is not None
        going = removable(state.model, self._graph, dead)
        if any((channels != gone).any() for channels, gone in zip(dead, going, strict=True)):
            return _refused(state.step, "a dead channel is a constant that the layers behind it cannot take in")
        return dataclasses.asdict(dataclasses.replace(state.channels.without(going), is_merged=True))

    def _prove(self, before: TrainState, after: TrainState, validation_data: ImageSource) -> dict[str, Any]:
        """Compare the outputs of the merged model with those of the one before; return what becomes of the merge.

        With an average of the weights both are compared, and the certificate has the larger difference.
        """
        assert after.channels is not None
        widths = zip(self._graph.groups, after.channels.widths, strict=True)
        counts = {g.name: {"kept": width * g.num_parts, "original": g.num_channels} for g, width in widths}
        images = validation_data.first_images(self._merge.num_images)
        pairs = [(before.model, after.model)]
        if before.average:
            pairs.append((before.evaluated_model(), after.evaluated_model()))
        certificates = []
        for pair in pairs:
            old, new = (with_precision(with_plain_batch_norm(model), "float32") for model in pair)
            certificates.append(certify(old, new, images, counts))
            difference = certificates[-1].max_relative_difference
            if not difference <= self._merge.tolerance:
                return _refused(before.step, f"the outputs would differ by {difference:.2g} of the largest")
        certificate = max(certificates, key=lambda certificate: certificate.max_relative_difference)
        _log.info(
            "Step %d: nothing is left to prune, and the slim model trains on without compactors. Its outputs differ by "
            "%.2g of the largest logit on %d images.",
            before.step,
            certificate.max_relative_difference,
            certificate.num_images,
        )
        return {"step": before.step, "certificate": vars(certificate)}

    def log(self, step: int, before: float, figures: Mapping[str, float]) -> None:
        """Log that the model shrinks.

        Args:
            step: Number of steps made.
            before: `macs_fraction` of the model before.
            figures: See `Hook.on_shrink`.
        """
        _log.info(
            "Step %d: the model shrinks from %.1f %% to %.1f %% of the base's multiply-adds, compactors counted "
            "(built in %.1f s, traced in %.1f s).",
            step,
            100 * before,
            100 * figures["training_macs_fraction"],
            figures["build_seconds"],
            figures["tracing_seconds"],
        )

    def macs_fraction(self, state: TrainState) -> float:
        """Return the multiply-adds of the model in training, with compactors, as a fraction of those of the base model.

        Args:
            state: The state of the run.
        """
        assert state.channels is not None
        return self._macs(state, state.channels) / self._base_macs

    def check(self, model: keras.Model, gradient_clip_norm: float | None) -> None:
        """Check that a model can shrink, and log a warning if the mode `exact` will not give the results of `off`.

        Args:
            model: The model in training.
            gradient_clip_norm: Limit of the gradients' norm; None for no limit.

        Raises:
            ConfigError: If a weight which a shrink makes smaller has a constraint, since its norm would be another one.
        """
        if self._config.mode != "off":
            self._require_unconstrained(model)
            self._warn_if_inexact(model, gradient_clip_norm)

    def _warn_if_inexact(self, model: keras.Model, gradient_clip_norm: float | None) -> None:
        reasons = []
        if random := [layer.name for layer in model.layers if _draws(layer)]:
            more = f" and {len(random) - 3} more" if len(random) > 3 else ""
            reasons.append(f"a smaller model draws other random numbers in {', '.join(random[:3])}{more}")
        if gradient_clip_norm is not None:
            reasons.append("training.gradient_clip_norm no longer counts the gradients of rows that are gone")
        if reasons:
            _log.warning(
                "shrink.mode %s is not exact in this run: %s. Training is valid, but gives other results than "
                "shrink.mode off; use off if they must be equal.",
                self._config.mode,
                "; ".join(reasons),
            )

    def _require_unconstrained(self, model: keras.Model) -> None:
        touched = [name for name, channels in self._graph.channels.items() if channels.is_in_a_group]
        for layer in map(model.get_layer, touched):
            if constrained := [weight.name for weight in layer.trainable_weights if weight.constraint is not None]:
                raise ConfigError(
                    f"shrink.mode: received '{self._config.mode}', but {constrained[0]} has a constraint, which a "
                    "smaller model would apply to fewer numbers; set shrink.mode: off, or leave out the constraint"
                )

    def _is_worth(self, state: TrainState, channels: KeptChannels) -> bool:
        assert state.channels is not None
        saved = (self._macs(state, state.channels) - self._macs(state, channels)) / self._base_macs
        is_enough = saved >= self._config.min_saved_macs_fraction
        return is_enough and saved * self._num_steps_left(state) >= self._config.min_saved_steps

    def _num_steps_left(self, state: TrainState) -> int:
        """Return the number of steps in which a smaller model is of use: a merge replaces it by another one."""
        is_merged_soon = (
            self._config.mode == "merge" and state.early_merge is None and state.step < self._masks.pruned_step
        )
        # None in the extension of a phase.
        return max(0, (self._masks.pruned_step if is_merged_soon else self._masks.num_steps) - state.step)

    def _macs(self, state: TrainState, channels: KeptChannels) -> int:
        return training_macs(state.model, self._graph, channels)


def _draws(layer: keras.layers.Layer) -> bool:
    """Return whether a layer draws random numbers in training."""
    if isinstance(layer, keras.layers.RNN):
        return bool(getattr(layer, "dropout", 0) or getattr(layer, "recurrent_dropout", 0))
    return isinstance(layer, keras.__internal__.layers.BaseRandomLayer)


def _refused(step: int, reason: str) -> dict[str, Any]:
    _log.warning("shrink.mode merge goes on as exact: %s.", reason)
    return {"step": step, "refused": reason}
