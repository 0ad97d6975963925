"""What `trace` finds: groups of channels that may go, the layers they touch, the cost."""

import dataclasses
from collections.abc import Sequence

from resrep_dist.graph.channels import GroupSegments
from resrep_dist.graph.kinds import Kind
from resrep_dist.graph.macs import MultiplyAdds


@dataclasses.dataclass(frozen=True)
class PrunableLayer:
    """A convolution or dense layer with a compactor behind it."""

    name: str
    batch_norm: str | None
    """The batch norm right behind it, folded together with it."""
    num_groups: int = 1
    """Of a grouped convolution: its compactor mixes only channels of one group."""

    @property
    def site(self) -> str:
        """The layer behind which the compactor stands."""
        return self.batch_norm or self.name

    @property
    def compactor(self) -> str:
        """The compactor's name."""
        return f"{self.name}_compactor"


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers whose output channels live and die together, by one mask; most groups have one layer."""

    layers: tuple[PrunableLayer, ...]
    width: int
    """Channels of each of the layers that can go one by one."""
    consumers: tuple[str, ...]
    """Convolutions and dense layers that lose input channels with the group."""
    num_parts: int = 1
    """A grouped convolution divides the channels of each layer into so many parts of `width` channels; channel i of
    all parts lives and dies together."""

    @property
    def name(self) -> str:
        """The first layer's."""
        return self.layers[0].name

    @property
    def num_channels(self) -> int:
        """Output channels of each of the layers."""
        return self.width * self.num_parts


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """How a layer of the flat model treats channels, and which groups' they are."""

    kind: Kind
    inputs: tuple[GroupSegments, ...]
    output: GroupSegments
    is_shared: bool = False
    """It is called at several places; the channels are those of one call."""

    @property
    def is_in_a_group(self) -> bool:
        """True where it has channels that may go."""
        return any(group is not None for segments in (*self.inputs, self.output) for group, _ in segments)


@dataclasses.dataclass(frozen=True)
class Graph:
    """What `trace` finds: groups in topological order, the other convolutions with the reason, the cost."""

    groups: tuple[Group, ...]
    refused: dict[str, str]
    macs: MultiplyAdds
    """By the width of each group."""
    uncounted: tuple[str, ...] = ()
    """Layers whose multiply-adds are not known; `macs` leaves them out."""
    channels: dict[str, LayerChannels] = dataclasses.field(default_factory=dict, repr=False)
    """By layer of the flat model; of a shared layer, a call that has channels that may go, if there is one."""

    @property
    def layers(self) -> list[PrunableLayer]:
        """All layers with a compactor, group by group."""
        return [layer for group in self.groups for layer in group.layers]

    @property
    def widths(self) -> list[int]:
        """Full width of each group."""
        return [group.width for group in self.groups]

    def at_widths(self, widths: Sequence[int]) -> "Graph":
        """The graph of the same model with fewer channels in its groups; the multiply-adds stay by width."""

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
