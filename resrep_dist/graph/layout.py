"""Which of the original channels a live model still has."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.errors import CheckpointError, one_line
from resrep_dist.graph import Graph

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which of the original channels a live model still has: all that it takes to build its like."""

    kept: tuple[tuple[int, ...], ...]
    """For each group, ascending."""
    is_refolded: bool = False
    """The layers before the compactors have lost the others too."""

    @classmethod
    def of(cls, graph: Graph, saved: Mapping[str, Any] | None = None) -> "Layout":
        """The one that a checkpoint's position holds as JSON; without, all channels of the original model.

        Raises:
            CheckpointError: where that is no layout of this graph.
        """
        if saved is None:
            return cls.of_widths(graph.widths)
        try:
            layout = cls(tuple(map(tuple, saved["kept"])), saved["is_refolded"])
            is_good = isinstance(layout.is_refolded, bool) and all(
                kept and list(kept) == sorted(set(kept).intersection(range(width)))
                for kept, width in zip(layout.kept, graph.widths, strict=True)
            )
        except (TypeError, KeyError, ValueError):
            is_good = False
        if not is_good:
            raise CheckpointError(
                f"the checkpoint's layout {one_line(saved)} is not one of this model's {len(graph.widths)} groups; "
                "use another --workdir"
            )
        return layout

    @classmethod
    def of_widths(cls, widths: Iterable[int], is_refolded: bool = False) -> "Layout":
        """The first channels of each group."""
        return cls(tuple(tuple(range(width)) for width in widths), is_refolded)

    @property
    def widths(self) -> list[int]:
        """Channels of each group."""
        return [len(channels) for channels in self.kept]

    def dead(self, graph: Graph) -> list[np.ndarray]:
        """For each group bool [width], the original channels that are gone."""
        return [~np.isin(np.arange(width), kept) for width, kept in zip(graph.widths, self.kept, strict=True)]

    def without(self, dead: Sequence[np.ndarray]) -> "Layout":
        """Without these of its channels, for each group bool [D]."""
        kept = zip(self.kept, dead, strict=True)
        return dataclasses.replace(self, kept=tuple(tuple(np.asarray(k)[~d].tolist()) for k, d in kept))
