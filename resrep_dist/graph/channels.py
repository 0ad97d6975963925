"""Which channels live and die together, and what a dead one holds on its way through the network."""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence


class State(enum.IntEnum):
    """What a dead channel holds at some tensor."""

    ZERO = 0
    """Zero at every pixel of every image."""
    CONSTANT = 1
    """One number at every pixel of every image."""
    VARYING = 2
    """It depends on the image or the pixel: the channel cannot be left out."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Neighbouring channels of a tensor that one layer has made."""

    variable: int
    """Index of the set of channels, see `ChannelSets`."""
    width: int
    """Number of channels."""
    state: State
    """What a dead channel holds here."""

    def at(self, state: State) -> "Segment":
        """The same channels in another state."""
        return dataclasses.replace(self, state=state)


Segments = tuple[Segment, ...]
"""All channels of a tensor in their order; a flattened tensor has its segments once per pixel, one whose channels a
grouped convolution divides has them once per part."""

GroupSegments = tuple[tuple[int | None, int], ...]
"""The same when the trace is done: index of the group (None where the channels stay) and width."""


@dataclasses.dataclass(frozen=True)
class Producer:
    """A layer whose output channels might go."""

    name: str
    is_convolution: bool
    """False for dense layers on vectors: these go only along with a convolution."""
    num_groups: int = 1
    """Of a grouped convolution: each group of outputs sees only its own group of inputs."""


class ChannelSets:
    """Sets of channels; those that must go together are joined (union-find).

    Args:
        residual_groups: layers that meet in an addition may be joined; False refuses them.
        gates: producers without a compactor: their channels go with those that they multiply.
        num_parts: producers whose output is that many equal parts, of which a grouped convolution needs the same
            channels each: channel i of all parts lives and dies together.
    """

    def __init__(
        self, residual_groups: bool, gates: Iterable[str] = (), num_parts: Mapping[str, int] | None = None
    ) -> None:
        self.residual_groups, self.gates = residual_groups, frozenset(gates)
        self.producers: list[Producer | None] = []
        self.widths: list[int] = []
        """Channels of each set; of a tensor in parts, those of one part."""
        self.num_parts: list[int] = []
        self.possible_gates: set[str] = set()
        self.requested_parts: dict[str, int] = {}
        """What `num_parts` must be for channels to go that are kept so far."""
        self._parts_of = dict(num_parts or {})
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}
        self._consumers: list[tuple[int, str]] = []

    def fixed(self, width: int) -> Segments:
        """Channels that stay, because nobody knows how to remove them."""
        return self._new(width, None, State.VARYING, "")

    def produced(self, producer: Producer, width: int, reason: str | None) -> Segments:
        """The output channels of a layer; with a reason they stay."""
        is_removed = reason is None and producer.name not in self.gates
        num_parts = math.lcm(self._parts_of.get(producer.name, 1), producer.num_groups)
        if width % num_parts:
            num_parts = producer.num_groups
        return self._new(width, producer, State.ZERO if is_removed else State.VARYING, reason, num_parts)

    def has_equal_parts(self, segments: Segments, num_parts: int) -> bool:
        """True if a tensor consists of `num_parts` equal parts: channel i of all parts lives and dies together."""
        roots = [self.find(segment.variable) for segment in segments]
        return len(roots) % num_parts == 0 and roots == roots[: len(roots) // num_parts] * num_parts

    def request_parts(self, segments: Segments, num_parts: int) -> None:
        """Record in `requested_parts` that the producers of a tensor should divide it into equal parts.

        This trace does not change: its producers have been passed already. The next one divides their channels. Only
        a tensor of one set of channels can be divided; no request is made for others, or if it has the parts.
        """
        roots = {self.find(segment.variable) for segment in segments}
        if len(roots) > 1 or self.has_equal_parts(segments, num_parts):
            return
        for variable, producer in enumerate(self.producers):
            if producer and self.find(variable) in roots:
                self.requested_parts[producer.name] = math.lcm(num_parts, self.num_parts[variable])

    def find(self, variable: int) -> int:
        """The representative of a set."""
        while self._parents[variable] != variable:
            variable = self._parents[variable]
        return variable

    def join(self, first: int, second: int) -> None:
        """From now on both sets live and die together."""
        first, second = sorted((self.find(first), self.find(second)))
        if first == second:
            return
        self._parents[second] = first
        reason = self._reasons.pop(second, None)
        if reason is not None and not self._reasons.get(first):
            self._reasons[first] = reason

    def keep(self, segments: Sequence[Segment], reason: str) -> None:
        """These channels must stay, for this reason; the first reason counts."""
        for segment in segments:
            root = self.find(segment.variable)
            self._reasons[root] = self._reasons.get(root) or reason

    def consume(self, segments: Sequence[Segment], consumer: str) -> None:
        """Note that a layer loses inputs with these channels."""
        self._consumers += {(segment.variable, consumer) for segment in segments}

    def reason(self, variable: int) -> str | None:
        """Why the channels stay; None where they may go."""
        return self._reasons.get(self.find(variable))

    def consumers(self) -> dict[int, set[str]]:
        """Consumers of each set, by its representative."""
        result: dict[int, set[str]] = {}
        for variable, name in self._consumers:
            result.setdefault(self.find(variable), set()).add(name)
        return result

    def _new(
        self, width: int, producer: Producer | None, state: State, reason: str | None, num_parts: int = 1
    ) -> Segments:
        variable = len(self._parents)
        self._parents.append(variable)
        self.producers.append(producer)
        self.widths.append(width // num_parts)
        self.num_parts.append(num_parts)
        if reason is not None:
            self._reasons[variable] = reason
        return (Segment(variable, width // num_parts, state),) * num_parts
