"""When masks change, and what they leave: the masks of a run."""

import logging
from collections.abc import Sequence

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import PruneConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.pruning.deadness import dead_channels, in_parts, num_masked_alive
from resrep_dist.pruning.rules import group_norms, row_norms, select_masks
from resrep_dist.pruning.targets import fewest_channels, require_prunable, require_reachable_target

import numpy as np
import tensorflow as tf

_log = logging.getLogger(__name__)


class Pruner:
    """Chooses the masks of a run.

    Channels that a shrunken model no longer has count as chosen and dead, so the masks are those of a model that does
    not shrink.

    Args:
        state: of the run; `follow` gives it another one.
        graph: of the original model.
        first_step: no mask is chosen before.
        last_step: no mask changes later; see `last_mask_step`.

    Raises:
        ModelError: for a graph without groups.
        ConfigError: for a target that cannot be reached.
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
        require_reachable_target(graph, config)
        self.graph, self._config, self._cluster = graph, config, cluster
        self._first_step, self._last_step = first_step, last_step
        self._total_macs = graph.macs.total(graph.widths)
        self.follow(state)

    def follow(self, state: TrainState) -> None:
        """Go on with this state, whose model may be another."""
        self._state, groups = state, self.graph.groups
        channels = state.channels or KeptChannels.all_of(self.graph)
        self._kept = [np.asarray(of_group) for of_group in channels.kept]
        self._compactors = [[state.model.get_layer(layer.compactor) for layer in group.layers] for group in groups]
        compactors = [compactor for group in self._compactors for compactor in group]
        # All layers in one graph: called one by one, a ResNet-50's take several times as long.
        self._local_norms = tf.function(
            lambda: [row_norms(compactor.kernel)[0, 0] for compactor in compactors], autograph=False
        )
        self._summed_norms = tf.function(lambda: self._cluster.sum(self._local_norms(), "row_norms"), autograph=False)
        self._set_masks = tf.function(
            lambda flat: _assign([compactor.mask for compactor in compactors], flat), autograph=False
        )

    @property
    def num_chosen(self) -> int:
        """Number of channels that the last update chose."""
        return self._state.num_chosen

    def is_due(self, step: int) -> bool:
        """True if masks are chosen after `step` steps."""
        in_time = self._first_step <= step <= self._last_step
        return in_time and step % self._config.mask_interval_steps == 0

    def is_settled(self, step: int) -> bool:
        """True if no mask changes any more after `step` steps."""
        return step >= self._last_step // self._config.mask_interval_steps * self._config.mask_interval_steps

    def update(self) -> None:
        """Choose all masks again from row norms averaged over the ranks (section 3.4); a collective."""
        norms = self._by_group([summed.numpy() / self._cluster.size for summed in self._summed_norms()])
        selection = select_masks(
            [self._at_full_width(index, of_group) for index, of_group in enumerate(norms)],
            self.graph.macs,
            target_macs=self._config.target_macs_fraction * self._total_macs,
            max_chosen=self._state.num_chosen + self._config.channels_per_update,
            min_channels=self._config.min_channels,
            round_to=self._config.round_to,
        )
        self._state.num_chosen = selection.num_chosen
        groups = zip(self.graph.groups, selection.masks, self._kept, strict=True)
        masks = [np.tile(mask[kept], group.num_parts) for group, mask, kept in groups for _ in group.layers]
        self._set_masks(np.concatenate(masks))

    def norms(self) -> list[np.ndarray]:
        """For each group the norms of its channels on this rank, [width of the model]; see `group_norms`."""
        return self._by_group(self._layer_norms())

    def channel_states(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each group, by name, its masked and its dead channels, bool [original width] each."""
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
        """The compactor of a group's first layer, [D_out, D_in]: the paper's Q."""
        index = [group.name for group in self.graph.groups].index(name)
        return self._compactors[index][0].kernel.numpy()[0, 0].T

    def unmasked_widths(self) -> list[int]:
        """Number of channels of each group that its mask keeps."""
        compactors = [group[0] for group in self._compactors]
        return [int(c.mask.numpy().sum()) // g.num_parts for c, g in zip(compactors, self.graph.groups, strict=True)]

    def living_widths(self) -> list[int]:
        """Number of channels of each group that a merge would keep now."""
        return [int((~channels).sum()) for channels in self.dead()]

    def dead(self) -> list[np.ndarray]:
        """For each group bool [width of the model], the channels that a merge would delete now."""
        return dead_channels(self._state.model, self.graph, self._config.dead_row_norm, self._layer_norms())

    def num_masked_alive(self) -> int:
        """Number of masked channels that are not dead yet."""
        return num_masked_alive(self._state.model, self.graph, self._config.dead_row_norm, self._layer_norms())

    def macs_fraction(self, widths: list[int]) -> float:
        """Multiply-adds at the given widths, as a fraction of the base model's."""
        return self.graph.macs.total(widths) / self._total_macs

    def curves(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Scalars and histograms for TensorBoard, by tag."""
        groups, living_widths, norms = self.graph.groups, self.living_widths(), self._layer_norms()
        scalars = {
            "train/lasso_term": self._state.optimizer.lasso_strength * float(sum(map(np.sum, norms))),
            "prune/macs_fraction_by_mask": self.macs_fraction(self.unmasked_widths()),
            "prune/macs_fraction_living": self.macs_fraction(living_widths),
            **{f"width/{g.name}": float(w * g.num_parts) for g, w in zip(groups, living_widths, strict=True)},
        }
        return scalars, {f"row_norms/{g.name}": n for g, n in zip(groups, self._by_group(norms), strict=True)}

    def warn_if_too_slow(self) -> None:
        """Log a warning if the updates that are left cannot mask enough channels for the target."""
        interval_steps, max_channels = self._config.mask_interval_steps, self._config.channels_per_update
        num_updates = self._last_step // interval_steps - (self._first_step - 1) // interval_steps
        num_needed = fewest_channels(self.graph, self._config)
        if num_needed > num_updates * max_channels:
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
