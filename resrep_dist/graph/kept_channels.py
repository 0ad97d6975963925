"""Which of the original channels a model in training still has."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.errors import CheckpointError, one_line
from resrep_dist.graph.structure import Graph

import numpy as np


@dataclasses.dataclass(frozen=True)
class KeptChannels:
    """The channels of each group that a model still has: all it takes to build a model of the same shape."""

    kept: tuple[tuple[int, ...], ...]
    """Indices into the original channels of each group, ascending."""
    is_merged: bool = False
    """True if there are no compactors any more: the layers before them have taken them in."""

    @classmethod
    def all_of(cls, graph: Graph) -> "KeptChannels":
        """Return all channels of the original model.

        Args:
            graph: Graph of the original model.
        """
        return cls.first_of(graph.widths)

    @classmethod
    def first_of(cls, widths: Iterable[int], is_merged: bool = False) -> "KeptChannels":
        """Return the first channels of each group.

        Args:
            widths: Number of channels of each group.
            is_merged: True if there are no compactors any more.
        """
        return cls(tuple(tuple(range(width)) for width in widths), is_merged)

    @classmethod
    def from_json(cls, graph: Graph, saved: Mapping[str, Any] | None) -> "KeptChannels":
        """Read what `to_json` returned.

        Args:
            graph: Graph of the original model.
            saved: The JSON value. None for all channels.

        Raises:
            CheckpointError: If the value does not fit the graph, or is of the mode `refold` of earlier versions.
        """
        if saved is None:
            return cls.all_of(graph)
        try:
            # Versions that had `refold` wrote `is_refolded`, true of merged models too; until 0.2.0 none was merged.
            is_folded = saved.get("is_refolded", saved.get("is_merged"))
            is_merged = saved.get("is_merged", False)
            result = cls(tuple(map(tuple, saved["kept"])), is_merged)
            is_good = (
                isinstance(is_folded, bool)
                and isinstance(is_merged, bool)
                and all(
                    kept and list(kept) == sorted(set(kept).intersection(range(width)))
                    for kept, width in zip(result.kept, graph.widths, strict=True)
                )
            )
        except (AttributeError, TypeError, KeyError, ValueError):
            is_good = False
        if not is_good:
            raise CheckpointError(
                f"the checkpoint's layout {one_line(saved)} is not one of this model's {len(graph.widths)} groups; "
                "use another --workdir"
            )
        if is_folded and not is_merged:
            raise CheckpointError(
                "the checkpoint is of a run with shrink.mode refold, which was removed; finish the run with version "
                "0.2.0, or begin again in another --workdir with shrink.mode merge"
            )
        return result

    def to_json(self, graph: Graph) -> dict[str, Any] | None:
        """Return a JSON value that `from_json` reads.

        Args:
            graph: Graph of the original model.

        Returns:
            The value. None for all channels of the original model.
        """
        return None if self == KeptChannels.all_of(graph) else dataclasses.asdict(self)

    @property
    def widths(self) -> list[int]:
        """Number of channels of each group."""
        return [len(channels) for channels in self.kept]

    def dead(self, graph: Graph) -> list[np.ndarray]:
        """Return which of the original channels are gone.

        Args:
            graph: Graph of the original model.

        Returns:
            For each group bool [original width], True for the channels that are gone.
        """
        return self.lost_from(KeptChannels.all_of(graph))

    def lost_from(self, before: "KeptChannels") -> list[np.ndarray]:
        """Return which channels of an earlier, wider model are gone.

        Args:
            before: The channels of that model.

        Returns:
            For each group bool [width in `before`], True for the channels that are gone.
        """
        return [~np.isin(old, new) for old, new in zip(before.kept, self.kept, strict=True)]

    def without(self, dead: Sequence[np.ndarray]) -> "KeptChannels":
        """Return the channels that remain if some of these are removed.

        Args:
            dead: For each group bool [width], True for the channels to remove.
        """
        kept = zip(self.kept, dead, strict=True)
        return dataclasses.replace(self, kept=tuple(tuple(np.asarray(k)[~d].tolist()) for k, d in kept))
