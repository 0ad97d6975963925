"""The result of a trace: groups of prunable channels, the layers that they touch, the multiply-adds."""

import dataclasses
import math
from collections.abc import Sequence

from resrep_dist.graph.kinds import Kind
from resrep_dist.graph.macs import MultiplyAdds, Parameters
from resrep_dist.timing.calls import GroupSegments, WeightedCall


@dataclasses.dataclass(frozen=True)
class PrunableLayer:
    """A convolution or dense layer that is followed by a compactor."""

    name: str
    """Name of the layer in the flat model."""
    batch_norm: str | None
    """Name of the batch norm that directly follows the layer and is folded with it; None if there is none."""
    num_groups: int = 1
    """Number of groups of a grouped convolution; its compactor mixes only channels of the same group."""

    @property
    def site(self) -> str:
        """Name of the layer that the compactor directly follows."""
        return self.batch_norm or self.name

    @property
    def compactor(self) -> str:
        """Name of the compactor."""
        return f"{self.name}_compactor"


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers whose output channels are pruned together, by one mask; most groups have one layer."""

    layers: tuple[PrunableLayer, ...]
    """The layers with a compactor."""
    width: int
    """Number of channels that can be pruned one by one: those of one part."""
    consumers: tuple[str, ...]
    """Names of the convolutions and dense layers that lose input channels with the group."""
    num_parts: int = 1
    """Number of parts of `width` channels in each layer's output; channel i of all parts is pruned together.

    More than 1 if a grouped convolution divides the channels.
    """

    @property
    def name(self) -> str:
        """Name of the group: that of its first layer."""
        return self.layers[0].name

    @property
    def num_channels(self) -> int:
        """Number of output channels of each layer."""
        return self.width * self.num_parts


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """How a layer of the flat model treats channels, and the groups that its channels belong to."""

    kind: Kind
    """The kind of layer."""
    inputs: tuple[GroupSegments, ...]
    """Channels of each input."""
    output: GroupSegments
    """Channels of the output."""
    is_shared: bool = False
    """True if the layer is called several times; the channels are those of one call."""

    @property
    def is_in_a_group(self) -> bool:
        """True if some of its channels are prunable."""
        return any(group is not None for segments in (*self.inputs, self.output) for group, _ in segments)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The result of `trace`."""

    groups: tuple[Group, ...]
    """Prunable groups in topological order."""
    refused: dict[str, str]
    """For each convolution that is not prunable, by name, the reason."""
    macs: MultiplyAdds
    """Multiply-adds as a function of the width of each group."""
    uncounted: tuple[str, ...] = ()
    """Names of layers whose multiply-adds are not known; `macs` does not include them."""
    channels: dict[str, LayerChannels] = dataclasses.field(default_factory=dict, repr=False)
    """For each layer of the flat model its channels; for a shared layer those of a call with prunable channels, if any.
    """
    parameters: Parameters | None = dataclasses.field(default=None, repr=False)
    """Parameters of the merged model as a function of the width of each group; None in a graph that was not traced."""
    calls: tuple[WeightedCall, ...] = dataclasses.field(default=(), repr=False)
    """The calls with multiply-adds whose number of channels pruning changes, in topological order."""

    @property
    def layers(self) -> list[PrunableLayer]:
        """All layers with a compactor, group by group."""
        return [layer for group in self.groups for layer in group.layers]

    @property
    def widths(self) -> list[int]:
        """Width of each group, channels."""
        return [group.width for group in self.groups]

    def multiples(self, round_to: int) -> list[int]:
        """Return what the width of each group has to be a multiple of, for multiples of `round_to` in its layers.

        Args:
            round_to: Number of channels. Less is enough for a group whose layers have several parts of its width.
        """
        return [round_to // math.gcd(round_to, group.num_parts) for group in self.groups]

    def at_widths(self, widths: Sequence[int]) -> "Graph":
        """Return the graph of the same model with other widths of its groups.

        `macs`, `parameters` and `calls` stay the same: they are functions of the widths.

        Args:
            widths: Number of channels of each group, in the order of `groups`.
        """

        def narrower(segments: GroupSegments) -> GroupSegments:
            return tuple((group, width if group is None else widths[group]) for group, width in segments)

        return dataclasses.replace(
            self,
            groups=tuple(dataclasses.replace(g, width=w) for g, w in zip(self.groups, widths, strict=True)),
            channels={
                name: dataclasses.replace(c, inputs=tuple(map(narrower, c.inputs)), output=narrower(c.output))
                for name, c in self.channels.items()
            },
        )
