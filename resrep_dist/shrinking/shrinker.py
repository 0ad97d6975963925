"""When the model in training shrinks, and the state of the run that goes on with the smaller one."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import ShrinkConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.shrinking.refolding import calibrate, norm_velocities, refolded, refolded_layers
from resrep_dist.shrinking.surgery import narrow_velocities, removable, with_channels, without_channels

import numpy as np
import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)


class Shrinker:
    """Decides when a model shrinks, and makes the smaller ones.

    Args:
        graph: of the original model.
        interval_steps: steps from one look at it to the next; that of the masks.
        cluster: the ranks, which average the statistics of refolded batch norms.
    """

    def __init__(self, graph: Graph, config: ShrinkConfig, interval_steps: int, cluster: Cluster) -> None:
        self._graph, self._config, self._interval_steps, self._cluster = graph, config, interval_steps, cluster
        self._base_macs = graph.macs.total(graph.widths)

    def is_due(self, step: int) -> bool:
        """True if a shrink is considered after `step` steps."""
        return self._config.mode != "off" and step % self._interval_steps == 0

    def next_channels(self, state: TrainState, dead: Sequence[np.ndarray]) -> dict[str, Any] | None:
        """The channels that the model should keep from now on, as JSON; None if it stays as it is.

        Args:
            dead: for each group bool [width of the model], see `Pruner.dead`.
        """
        assert state.channels is not None
        # A run may go on in another mode than it began in; what was folded stays folded.
        is_refolded = state.channels.is_refolded or self._config.mode == "refold"
        channels = dataclasses.replace(state.channels.without(dead), is_refolded=is_refolded)
        # Constants cost a look at every layer; where too few channels are dead there is no need.
        if not self._is_worth(state, channels):
            return None
        going = removable(state.model, self._graph, dead)
        channels = dataclasses.replace(state.channels.without(going), is_refolded=is_refolded)
        return dataclasses.asdict(channels) if self._is_worth(state, channels) else None

    def at(self, whole: TrainState, channels: KeptChannels) -> TrainState:
        """A state with these channels for values to be loaded into; `whole` itself if it has all of them.

        Args:
            whole: the state at full width.
        """
        if channels == whole.channels:
            return whole
        return whole.for_model(with_channels(whole.model, self._graph, channels), channels)

    def shrink(self, state: TrainState, channels: KeptChannels, batches: Iterable[tf.Tensor]) -> TrainState:
        """The run's state with a smaller model; a collective if it is refolded.

        Args:
            channels: those that the smaller model has.
            batches: this rank's images for the statistics of batch norms; taken only if they are needed.
        """
        assert state.channels is not None
        dead = channels.lost_from(state.channels)
        velocities = narrow_velocities(state.model, self._graph, dead, state.velocities)
        model = without_channels(state.model, self._graph, dead)
        if channels.is_refolded:
            before, model = model, refolded(model, self._graph)
            calibrate(model, self._graph, batches, self._cluster)
            # What was folded begins at rest, but for the row norms.
            folded = refolded_layers(self._graph)
            of_norms = norm_velocities(before, model, self._graph, velocities)
            velocities = {name: v for name, v in velocities.items() if name.rpartition("/")[0] not in folded} | of_norms
        return state.for_model(model, channels, velocities)

    def macs_fraction(self, state: TrainState) -> float:
        """Multiply-adds of the model in training, compactors among them, as a fraction of the base model's."""
        assert state.channels is not None
        return self._macs(state, state.channels) / self._base_macs

    def warn_if_inexact(self, model: keras.Model, gradient_clip_norm: float | None) -> None:
        """Log why `exact` will not train what `off` would train, if that is so."""
        reasons = []
        if random := [
            layer.name for layer in model.layers if isinstance(layer, keras.__internal__.layers.BaseRandomLayer)
        ]:
            more = f" and {len(random) - 3} more" if len(random) > 3 else ""
            reasons.append(f"a smaller model draws other random numbers in {', '.join(random[:3])}{more}")
        if gradient_clip_norm is not None:
            reasons.append("training.gradient_clip_norm no longer counts the gradients of rows that are gone")
        if self._config.mode == "exact" and reasons:
            _log.warning(
                "shrink.mode exact is not exact in this run: %s. Training goes on soundly but otherwise than with "
                "shrink.mode off; use off if the results are to be equal.",
                "; ".join(reasons),
            )

    def _is_worth(self, state: TrainState, channels: KeptChannels) -> bool:
        assert state.channels is not None
        saved_macs = self._macs(state, state.channels) - self._macs(state, channels)
        return saved_macs >= self._config.min_saved_macs_fraction * self._base_macs

    def _macs(self, state: TrainState, channels: KeptChannels) -> int:
        return training_macs(state.model, self._graph, channels.widths, channels.is_refolded)
