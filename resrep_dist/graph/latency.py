"""The time of a forward pass as a function of the widths of the prunable groups, from a table of measured times."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from resrep_dist.errors import ConfigError
from resrep_dist.graph.costs import Cost
from resrep_dist.graph.latency_table import LatencyTable
from resrep_dist.graph.structure import Graph
from resrep_dist.timing.interpolation import Grids
from resrep_dist.timing.table import LayerTimes, Steps

import numpy as np

_NUM_PROBES = 16
# From this share on the rest of a block takes no time.
_FREE_SHARE = 0.9


class Latency(Cost):
    """Milliseconds of a forward pass: a constant, and the scaled sum of the times of all layers that pruning changes.

    It never grows if a width becomes smaller, as long as widths are those of `fast_widths`. Measured times may fall
    where a width grows, by chance or because a block of channels gets full. The selection needs a cost that never does:
    each time becomes the mean of the longest of all narrower layers and the shortest of all wider ones, which is the
    time itself where nothing falls.

    Args:
        table: The table.
        graph: Trace of the model.
        origin: Where the table comes from, for messages.

    Raises:
        ConfigError: If the table is of another model.
    """

    noun = "latency"
    unit = "ms"

    def __init__(self, table: LatencyTable, graph: Graph, origin: str) -> None:
        self.base_ms = table.base_ms
        self._constant_ms, self._scale = table.constant_ms, table.scale
        _require_same_layers(table, graph, origin)
        layers = {layer.key: layer for layer in table.layers}
        self._names = [call.name for call in graph.calls]
        self._steps = _steps_of_groups(graph, layers)
        self._fast_widths: dict[tuple[int, int], list[int]] = {}
        self._grids = Grids([(call, layers[call.key]) for call in graph.calls], len(graph.groups))

    def total(self, widths: Sequence[int]) -> float:
        """Return the time of a forward pass, ms.

        Args:
            widths: Number of channels of each group.
        """
        return self._constant_ms + self._scale * self.layer_sum(widths)

    def layer_sum(self, widths: Sequence[int]) -> float:
        """Return the sum of the times of the layers that pruning changes, as they were measured one by one, ms.

        Args:
            widths: Number of channels of each group.
        """
        # Rounded once and exactly, so that it is the same on every processor.
        return math.fsum(self._grids.times(np.asarray(widths)).tolist())

    def by_layer(self, widths: Sequence[int]) -> dict[str, float]:
        """Return the time of each layer that pruning changes inside of a whole model, by its name, ms.

        Args:
            widths: Number of channels of each group.
        """
        result: dict[str, float] = {}
        for name, milliseconds in zip(self._names, self._grids.times(np.asarray(widths)).tolist(), strict=True):
            result[name] = result.get(name, 0.0) + self._scale * milliseconds
        return result

    def fast_widths(self, group: int, full: int) -> list[int]:
        """Return the widths of a group at which its layers get faster; all if they get faster with each channel.

        Args:
            group: Index of the group.
            full: Its full width.
        """
        if (known := self._fast_widths.get((group, full))) is not None:
            return known
        steps = self._steps[group]
        is_free = bool(steps) and min(each.share for _, each in steps) >= _FREE_SHARE
        fast = [width for width in range(1, full) if all(each.is_fast(n * width, is_free) for n, each in steps)]
        fast.append(full)
        self._fast_widths[group, full] = fast
        return fast

    def per_channel(self, widths: Sequence[int]) -> list[float]:
        """Return for each group the time that a channel saves if the next fast width is taken.

        Args:
            widths: Number of channels of each group, at least 1.
        """
        return [self._saving(widths, group, number) / number for group, number in enumerate(self._to_next(widths))]

    def _to_next(self, widths: Sequence[int]) -> list[int]:
        """Return for each group the number of channels down to the next fast width; 1 if there is none."""
        fast = [[f for f in self.fast_widths(group, width) if f < width] for group, width in enumerate(widths)]
        return [width - below[-1] if below else 1 for width, below in zip(widths, fast, strict=True)]

    def slopes(self, widths: Sequence[int]) -> list[float]:
        """Return for each group the most that a channel saves on average, over several numbers of removed channels.

        Args:
            widths: Number of channels of each group.
        """
        result = []
        for group, width in enumerate(widths):
            fast = self.fast_widths(group, width)[:-1]
            possible = [width - narrow for narrow in fast[:: max(1, len(fast) // _NUM_PROBES)]]
            result.append(max((self._saving(widths, group, number) / number for number in possible), default=0.0))
        return result

    def _saving(self, widths: Sequence[int], group: int, number: int) -> float:
        fewer = list(widths)
        fewer[group] -= number
        return self.total(widths) - self.total(fewer)


def _require_same_layers(table: LatencyTable, graph: Graph, origin: str) -> None:
    """Refuse a table that does not have the layers of the graph, each kind as often as there.

    A deeper model of the same family has more of the same kinds. Names say nothing: they may change in a file.
    """
    received = Counter(layer.key for layer in table.layers for _ in layer.names)
    expected = Counter(call.key for call in graph.calls)
    if received == expected:
        return
    if missing := [call.name for call in graph.calls if call.key not in received]:
        what = f"no times for {len(missing)} of {len(graph.calls)} layers, such as {missing[0]}"
    else:
        other = next(layer for layer in table.layers if received[layer.key] != expected[layer.key])
        numbers = received[other.key], expected[other.key]
        what = f"the times of {numbers[0]} layers like {other.names[0]}, expected those of {numbers[1]}"
    raise ConfigError(
        f"costs {origin}: it is of another model ({table.model}), or of other settings of what is pruned: it has "
        f"{what}; write one for this configuration with `resrep measure`"
    )


def _steps_of_groups(graph: Graph, layers: Mapping[tuple[str, int, int], LayerTimes]) -> list[list[tuple[int, Steps]]]:
    """Return for each group the blocks of all layers that have its channels once, and no others, on a side.

    Before them is the number of channels there for each of the group's width. Left out is what was not scanned, which
    says nothing of blocks: the outputs of a layer that treats every channel alone, and both sides of a grouped one.
    """
    result: list[list[tuple[int, Steps]]] = [[] for _ in graph.groups]
    for call in graph.calls:
        layer = layers[call.key]
        sides = (call.inputs, layer.input_steps), (call.output, layer.output_steps)
        for (segments, steps), is_scanned in zip(sides, call.is_scanned, strict=True):
            groups = {group for group, _ in segments}
            (group,) = groups if len(groups) == 1 else (None,)
            if is_scanned and group is not None and len(segments) == graph.groups[group].num_parts:
                result[group].append((len(segments), steps))
    return result
