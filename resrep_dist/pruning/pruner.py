"""Chooses the masks of a run when they are due, and reports their effect."""

import logging
from collections.abc import Sequence

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import PruneConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.pruning.deadness import dead_channels, in_parts, num_masked_alive
from resrep_dist.pruning.goals import ranking_scales
from resrep_dist.pruning.planning import update_rate
from resrep_dist.pruning.rules import group_norms, row_norms, select_masks
from resrep_dist.pruning.schedule import num_mask_updates
from resrep_dist.pruning.targets import fewest_channels, require_prunable, require_reachable_target

import numpy as np
import tensorflow as tf

_log = logging.getLogger(__name__)


class Pruner:
    """Chooses the masks of a run.

    Channels that a shrunken model no longer has count as chosen and dead. So the masks are the same as those of a model
    that does not shrink.

    Attributes:
        interval_steps: Number of steps between two updates of the masks.
        goal: The target, with the cost that it counts.

    Args:
        state: State of the run; `follow` replaces it.
        graph: Trace of the original model.
        config: Target and limits of the masks. `auto` is chosen for the first and the last step, see `update_rate`.
        cluster: The ranks, over which row norms are averaged.
        first_step: No mask is chosen before this step.
        last_step: No mask changes after this step; see `last_mask_step`.

    Raises:
        ModelError: If the graph has no groups.
        ConfigError: If the target cannot be reached.
    """

    def __init__(
        self,
        state: TrainState,
        graph: Graph,
        config: PruneConfig,
        cluster: Cluster,
        *,
        first_step: int,
        last_step: int,
    ) -> None:
        require_prunable(state.model.name, graph)
        self.goal = require_reachable_target(graph, config)
        self._scales = ranking_scales(self.goal, graph, config)
        self.graph, self._config, self._cluster = graph, config, cluster
        self._first_step, self._last_step = first_step, last_step
        self.interval_steps, self._max_channels = update_rate(config, graph, first_step, last_step)
        self._total_macs = graph.macs.total(graph.widths)
        self.follow(state)

    def follow(self, state: TrainState) -> None:
        """Continue with another state of the same run.

        Args:
            state: A state whose model may be smaller.
        """
        self._state, groups = state, self.graph.groups
        channels = state.channels or KeptChannels.all_of(self.graph)
        self._kept = [np.asarray(of_group) for of_group in channels.kept]
        self._compactors = [[state.model.get_layer(layer.compactor) for layer in group.layers] for group in groups]
        compactors = [compactor for group in self._compactors for compactor in group]
        # One graph for all layers: calling them one by one takes several times as long for a ResNet-50.
        self._local_norms = tf.function(
            lambda: [row_norms(compactor.kernel)[0, 0] for compactor in compactors], autograph=False
        )
        self._summed_norms = tf.function(lambda: self._cluster.sum(self._local_norms(), "row_norms"), autograph=False)
        self._set_masks = tf.function(
            lambda flat: _assign([compactor.mask for compactor in compactors], flat), autograph=False
        )

    @property
    def num_chosen(self) -> int:
        """Number of channels that the last update chose; see `Selection.num_chosen`."""
        return self._state.num_chosen

    def is_due(self, step: int) -> bool:
        """Return True if masks are chosen after this step.

        Args:
            step: Number of steps made.
        """
        in_time = self._first_step <= step <= self._last_step
        return in_time and step % self.interval_steps == 0

    def is_settled(self, step: int) -> bool:
        """Return True if masks no longer change after this step.

        Args:
            step: Number of steps made.
        """
        return step >= self._last_step // self.interval_steps * self.interval_steps

    def update(self) -> None:
        """Choose all masks again from the row norms averaged over the ranks (section 3.4). A collective."""
        norms = self._by_group([summed.numpy() / self._cluster.size for summed in self._summed_norms()])
        selection = select_masks(
            [self._at_full_width(index, of_group) for index, of_group in enumerate(norms)],
            self.goal.cost,
            target_cost=self.goal.limit,
            max_chosen=self._state.num_chosen + self._max_channels,
            min_channels=self._config.min_channels,
            round_to=self.graph.multiples(self._config.round_to),
            scales=self._scales,
        )
        self._state.num_chosen = selection.num_chosen
        groups = zip(self.graph.groups, selection.masks, self._kept, strict=True)
        masks = [np.tile(mask[kept], group.num_parts) for group, mask, kept in groups for _ in group.layers]
        self._set_masks(np.concatenate(masks))

    def norms(self) -> list[np.ndarray]:
        """Return the norms of the channels on this rank; see `group_norms`.

        Returns:
            For each group [width of the model].
        """
        return self._by_group(self._layer_norms())

    def channel_states(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return which channels are masked and which are dead.

        Returns:
            For each group, by name, the masked and the dead channels, bool [original width] each.
        """
        states = {}
        for group, compactors, kept, dead in zip(
            self.graph.groups, self._compactors, self._kept, self.dead(), strict=True
        ):
            is_masked, is_gone = np.ones(group.width, bool), np.ones(group.width, bool)
            is_masked[kept] = in_parts(compactors[0].mask.numpy(), group.num_parts)[0] == 0
            is_gone[kept] = dead
            states[group.name] = is_masked, is_gone
        return states

    def kernel(self, name: str) -> np.ndarray:
        """Return the paper's Q of a group: the compactor of its first layer.

        Args:
            name: Name of the group.

        Returns:
            [D_out, D_in].
        """
        index = [group.name for group in self.graph.groups].index(name)
        return self._compactors[index][0].kernel.numpy()[0, 0].T

    def unmasked_widths(self) -> list[int]:
        """Return the number of unmasked channels of each group."""
        compactors = [group[0] for group in self._compactors]
        return [int(c.mask.numpy().sum()) // g.num_parts for c, g in zip(compactors, self.graph.groups, strict=True)]

    def living_widths(self) -> list[int]:
        """Return the number of channels of each group that a merge would keep now."""
        return [int((~channels).sum()) for channels in self.dead()]

    def dead(self) -> list[np.ndarray]:
        """Return the channels that a merge would delete now; see `dead_channels`.

        Returns:
            For each group bool [width of the model].
        """
        return dead_channels(self._state.model, self.graph, self._config.dead_row_norm, self._layer_norms())

    def num_masked_alive(self) -> int:
        """Return the number of masked channels that are not dead yet."""
        return num_masked_alive(self._state.model, self.graph, self._config.dead_row_norm, self._layer_norms())

    def is_pruned(self) -> bool:
        """Return True if the living channels meet the target and every masked row is dead: nothing is left to do."""
        return self.goal.is_met(self.living_widths()) and self.num_masked_alive() == 0

    def macs_fraction(self, widths: list[int]) -> float:
        """Return the multiply-adds as a fraction of those of the base model.

        Args:
            widths: Width of each group.
        """
        return self.graph.macs.total(widths) / self._total_macs

    def curves(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return the values for TensorBoard on this rank.

        Returns:
            Scalars and histograms, by tag.
        """
        groups, living_widths, norms = self.graph.groups, self.living_widths(), self._layer_norms()
        scalars = {
            "train/lasso_term": self._state.optimizer.lasso_term(),
            "prune/macs_fraction_by_mask": self.macs_fraction(self.unmasked_widths()),
            "prune/macs_fraction_living": self.macs_fraction(living_widths),
            # Of another target than multiply-adds also what it counts.
            f"prune/{self.goal.kind}_fraction_by_mask": self.goal.fraction_at(self.unmasked_widths()),
            f"prune/{self.goal.kind}_fraction_living": self.goal.fraction_at(living_widths),
            **{f"width/{g.name}": float(w * g.num_parts) for g, w in zip(groups, living_widths, strict=True)},
        }
        return scalars, {f"row_norms/{g.name}": n for g, n in zip(groups, self._by_group(norms), strict=True)}

    def warn_if_too_slow(self) -> None:
        """Log a warning if the remaining updates cannot mask enough channels for the target."""
        max_channels = self._max_channels
        num_updates = num_mask_updates(self._first_step, self._last_step, self.interval_steps)
        num_needed = fewest_channels(self.graph, self._config)
        if num_updates <= 0:
            _log.warning(
                "The target will be missed: masks may change from step %d to step %d, and no update falls into this "
                "time. Raise prune.lasso_strength, lower prune.mask_start_epochs or prune.mask_interval_steps, or "
                "train longer.",
                self._first_step,
                self._last_step,
            )
        elif num_needed > num_updates * max_channels:
            _log.warning(
                "The target will be missed: it takes at least %d channels, and %d updates of the masks choose at most "
                "%d each. Raise prune.channels_per_update, lower prune.mask_interval_steps, or train longer.",
                num_needed,
                num_updates,
                max_channels,
            )

    def _layer_norms(self) -> list[np.ndarray]:
        return [norms.numpy() for norms in self._local_norms()]

    def _by_group(self, norms: list[np.ndarray]) -> list[np.ndarray]:
        of_layers = iter(norms)
        return [
            group_norms([part for _ in group.layers for part in in_parts(next(of_layers), group.num_parts)])
            for group in self.graph.groups
        ]

    def _at_full_width(self, index: int, norms: np.ndarray) -> np.ndarray:
        full = np.zeros(self.graph.widths[index], norms.dtype)
        full[self._kept[index]] = norms
        return full


def _assign(variables: Sequence[tf.Variable], flat: tf.Tensor) -> None:
    values = tf.split(flat, [variable.shape[0] for variable in variables])
    for variable, value in zip(variables, values, strict=True):
        variable.assign(tf.cast(value, variable.dtype))
