"""When the model in training shrinks, and what goes on with it: velocities, masks, counters."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.layout import Layout
from resrep_dist.layers.costs import training_macs
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.shrinking.refolding import calibrate, norm_velocities, refolded, refolded_layers
from resrep_dist.shrinking.surgery import at_layout, narrow_velocities, removable, without_channels
from resrep_dist.training.live_model import LiveModel
from resrep_dist.training.phase import PhasePlan, pruning_of

import numpy as np
import tensorflow as tf
from tensorflow import keras


class Shrinker:
    """Makes smaller ones of a live model; `layout` says how the one that it made last looks."""

    def __init__(self, graph: Graph, config: Config, plan: PhasePlan, cluster: Cluster) -> None:
        self._graph, self._config, self._plan, self._cluster = graph, config, plan, cluster
        self._base_macs = graph.macs.total(graph.widths)
        self.layout = Layout.of(graph)

    def is_due(self, step: int) -> bool:
        """True where it is looked at after `step` steps whether to shrink: as often as masks are chosen."""
        return self._config.shrink.mode != "off" and step % pruning_of(self._config).mask_interval_steps == 0

    def next_layout(self, live: LiveModel) -> dict[str, Any] | None:
        """The layout that the model should have now, as JSON; none where it stays as it is."""
        assert live.pruner is not None
        dead = live.pruner.dead()
        # A run may go on in another mode than it began in; what was folded stays folded.
        is_refolded = self.layout.is_refolded or self._config.shrink.mode == "refold"
        layout = dataclasses.replace(self.layout.without(dead), is_refolded=is_refolded)
        # Constants cost a look at every layer; where too few channels are dead there is no need.
        if not self._is_worth(live, layout):
            return None
        going = removable(live.model, self._graph, dead)
        layout = dataclasses.replace(self.layout.without(going), is_refolded=is_refolded)
        return dataclasses.asdict(layout) if self._is_worth(live, layout) else None

    def saved_layout(self) -> dict[str, Any] | None:
        """What a checkpoint holds of it, as JSON; none at full width."""
        return None if self.layout == Layout.of(self._graph) else dataclasses.asdict(self.layout)

    def rebuild(self, live: LiveModel, layout: Layout) -> LiveModel:
        """A model at this layout in place of one at full width, for a state to be restored into."""
        return self.live_at(at_layout(live.model, self._graph, layout), layout, live.pruner)

    def shrink(self, live: LiveModel, layout: Layout, batches: Iterable[tf.Tensor]) -> LiveModel:
        """The live model at a smaller layout, its state with it; a collective where it is refolded.

        Args:
            batches: this rank's images for the statistics of batch norms, taken only where they are needed.
        """
        dead = [~np.isin(old, new) for old, new in zip(self.layout.kept, layout.kept, strict=True)]
        of_weights = {n.removeprefix("velocity/"): v for n, v in live.state.items() if n.startswith("velocity/")}
        velocities = narrow_velocities(live.model, self._graph, dead, of_weights)
        model = without_channels(live.model, self._graph, dead)
        if layout.is_refolded:
            before, model = model, refolded(model, self._graph)
            calibrate(model, self._graph, batches, self._cluster)
            # What was folded begins at rest, but for the row norms.
            anew = refolded_layers(self._graph)
            of_norms = norm_velocities(before, model, self._graph, velocities)
            velocities = {name: v for name, v in velocities.items() if name.rpartition("/")[0] not in anew} | of_norms
        smaller = self.live_at(model, layout, live.pruner)
        smaller.take_over(live, velocities)
        return smaller

    def live_at(self, model: keras.Model, layout: Layout, pruner: Pruner | None = None) -> LiveModel:
        """What trains a model that is at this layout; by default with a new pruner."""
        live = LiveModel(model, self._graph, self._config, self._plan, self._cluster, pruner)
        assert live.pruner is not None
        live.pruner.follow(model, layout.kept)
        self.layout = layout
        return live

    def macs_fraction(self, live: LiveModel) -> float:
        """Multiply-adds of the model in training, compactors among them, as a fraction of the base model's."""
        return self._macs(live, self.layout) / self._base_macs

    def _is_worth(self, live: LiveModel, layout: Layout) -> bool:
        saved = self._macs(live, self.layout) - self._macs(live, layout)
        return saved >= self._config.shrink.min_saved_macs_fraction * self._base_macs

    def _macs(self, live: LiveModel, layout: Layout) -> int:
        return training_macs(live.model, self._graph, layout.widths, layout.is_refolded)
