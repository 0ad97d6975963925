"""Which channels are kept or removed together, and which values dead channels hold in the rest of the network."""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence


class State(enum.IntEnum):
    """What a dead channel holds in a tensor."""

    ZERO = 0
    """Zero at every pixel of every image."""
    CONSTANT = 1
    """One number at every pixel of every image."""
    VARYING = 2
    """A value that depends on the image or the pixel: the channel cannot be removed."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Neighboring channels of a tensor that were produced by one layer."""

    variable: int
    """Index of the set of channels in `ChannelSets`."""
    width: int
    """Number of channels."""
    state: State
    """What a dead channel holds here."""

    def at(self, state: State) -> "Segment":
        """Return the same channels in another state.

        Args:
            state: What a dead channel holds.
        """
        return dataclasses.replace(self, state=state)


Segments = tuple[Segment, ...]
"""All channels of a tensor, in order.

A flattened tensor has its segments once per pixel. A tensor whose channels are divided for a grouped convolution has
one segment per part, all of the same set.
"""


@dataclasses.dataclass(frozen=True)
class Producer:
    """A layer whose output channels might be pruned."""

    name: str
    """Name of the layer in the flat model."""
    is_convolution: bool
    """False for a dense layer on vectors: its channels are pruned only together with those of a convolution."""
    num_groups: int = 1
    """Number of groups of a grouped convolution, in which each output depends on the inputs of one group."""


class ChannelSets:
    """Sets of channels. Sets that can only be pruned together are joined (union-find).

    Args:
        residual_groups: True if layers whose outputs are added may be joined, False if their channels are kept.
        gates: Names of producers without a compactor. Their channels are removed together with those that they
            multiply.
        num_parts: For each producer that must divide its output, by name, the number of equal parts. A grouped
            convolution needs the same channels in each of its groups, so channel i of all parts is kept or removed
            together. None if no producer must.
    """

    def __init__(
        self, residual_groups: bool, gates: Iterable[str] = (), num_parts: Mapping[str, int] | None = None
    ) -> None:
        self.residual_groups, self.gates = residual_groups, frozenset(gates)
        self.producers: list[Producer | None] = []
        self.widths: list[int] = []
        """Number of channels of each set; of one part if the tensor is divided."""
        self.num_parts: list[int] = []
        """Number of parts of each set."""
        self.possible_gates: set[str] = set()
        """Names of producers that could be gates in the next trace."""
        self.requested_parts: dict[str, int] = {}
        """The `num_parts` with which the next trace could prune channels that this one keeps."""
        self._parts_of = dict(num_parts or {})
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}
        self._consumers: list[tuple[int, str]] = []

    def fixed(self, width: int) -> Segments:
        """Create a set of channels that cannot be removed and need no reason, such as those of the input.

        Args:
            width: Number of channels.

        Returns:
            One segment.
        """
        return self._new(width, None, State.VARYING, "")

    def produced(self, producer: Producer, width: int, reason: str | None) -> Segments:
        """Create the set of a layer's output channels.

        Args:
            producer: The layer.
            width: Number of output channels.
            reason: Why the channels are kept. None if they may be removed.

        Returns:
            One segment, or one per part if the producer's channels are divided.
        """
        is_removed = reason is None and producer.name not in self.gates
        num_parts = math.lcm(self._parts_of.get(producer.name, 1), producer.num_groups)
        assert width % num_parts == 0
        return self._new(width, producer, State.ZERO if is_removed else State.VARYING, reason, num_parts)

    def has_equal_parts(self, segments: Segments, num_parts: int) -> bool:
        """Return True if a tensor consists of equal parts whose channels i are kept or removed together.

        Args:
            segments: Channels of the tensor.
            num_parts: Number of parts.
        """
        roots = [self.find(segment.variable) for segment in segments]
        return len(roots) % num_parts == 0 and roots == roots[: len(roots) // num_parts] * num_parts

    def request_parts(self, segments: Segments, num_parts: int) -> None:
        """Record in `requested_parts` that the producers of a tensor should divide it into `num_parts` equal parts.

        This trace does not change, because it has already passed the producers; the next one divides their channels.
        Only a tensor of a single set can be divided, and only if the number of parts divides its width. Nothing is
        recorded for other tensors, or if the parts exist.

        Args:
            segments: Channels of the tensor.
            num_parts: Number of parts that a consumer of the tensor needs.
        """
        roots = {self.find(segment.variable) for segment in segments}
        if len(roots) > 1 or self.has_equal_parts(segments, num_parts):
            return
        for variable, producer in enumerate(self.producers):
            if producer and self.find(variable) in roots:
                # A multiple, so that what another consumer has requested still holds.
                requested = math.lcm(num_parts, self.num_parts[variable])
                if self.widths[variable] * self.num_parts[variable] % requested == 0:
                    self.requested_parts[producer.name] = requested

    def find(self, variable: int) -> int:
        """Return the index of the set that represents all sets joined with a set.

        Args:
            variable: Index of the set.
        """
        while self._parents[variable] != variable:
            variable = self._parents[variable]
        return variable

    def are_divided_alike(self, first: int, second: int) -> bool:
        """Return True unless the layers of two sets divide their channels into different numbers of parts.

        Args:
            first: Index of a set.
            second: Index of the other set.
        """
        roots = (self.find(first), self.find(second))
        # Channels without a producer are never divided, nor removed.
        is_fixed = any(self.producers[root] is None for root in roots)
        return is_fixed or self.num_parts[roots[0]] == self.num_parts[roots[1]]

    def join(self, first: int, second: int) -> None:
        """Join two sets: from now on their channels are kept or removed together.

        If either set must be kept, both are.

        Args:
            first: Index of a set.
            second: Index of the other set.
        """
        first, second = sorted((self.find(first), self.find(second)))
        if first == second:
            return
        self._parents[second] = first
        reason = self._reasons.pop(second, None)
        if reason is not None and not self._reasons.get(first):
            self._reasons[first] = reason

    def keep(self, segments: Sequence[Segment], reason: str) -> None:
        """Mark channels as not prunable.

        Args:
            segments: The channels.
            reason: Why they are kept. The first reason given for a set is reported to the user.
        """
        for segment in segments:
            root = self.find(segment.variable)
            self._reasons[root] = self._reasons.get(root) or reason

    def consume(self, segments: Sequence[Segment], consumer: str) -> None:
        """Record that a layer loses input channels when these channels are removed.

        Args:
            segments: The channels.
            consumer: Name of the layer.
        """
        self._consumers += {(segment.variable, consumer) for segment in segments}

    def reason(self, variable: int) -> str | None:
        """Return why the channels of a set are kept.

        Args:
            variable: Index of the set.

        Returns:
            The reason, empty if none needs to be given. None if the channels may be removed.
        """
        return self._reasons.get(self.find(variable))

    def consumers(self) -> dict[int, set[str]]:
        """Return the names of the consumers of each set, by the index of the set that represents it."""
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
