"""What a model costs as a function of the widths of its prunable groups: one interface for all kinds of cost."""

import abc
import dataclasses
from collections.abc import Sequence

from resrep_dist.graph.kinds import UnitMacs
from resrep_dist.timing.calls import GroupSegments

CallCost = tuple[str, UnitMacs | None, GroupSegments, GroupSegments]
"""Name of the layer, cost of a call (None if not known), channels of its first input and of its output."""


class Cost(abc.ABC):
    """A cost of one forward pass that never grows if a width becomes smaller, at least among `fast_widths`.

    Widths are in channels, one for each group in the order of `Graph.groups`.
    """

    noun: str
    """What is counted, in the plural, as in "multiply-adds"."""
    unit: str = ""
    """Unit of the numbers; empty for a count."""

    @abc.abstractmethod
    def total(self, widths: Sequence[int]) -> float:
        """Return the cost of the model.

        Args:
            widths: Number of channels of each group.
        """

    @abc.abstractmethod
    def per_channel(self, widths: Sequence[int]) -> Sequence[float]:
        """Return for each group what is saved by removing one channel.

        Args:
            widths: Number of channels of each group, at least 1.
        """

    @abc.abstractmethod
    def slopes(self, widths: Sequence[int]) -> Sequence[float]:
        """Return for each group the most that a channel saves, if many of this group are removed and no others.

        Args:
            widths: Number of channels of each group.
        """

    @abc.abstractmethod
    def by_layer(self, widths: Sequence[int]) -> dict[str, float]:
        """Return what each layer costs, by its name; what belongs to no layer is left out.

        Args:
            widths: Number of channels of each group.
        """

    def fast_widths(self, group: int, full: int) -> Sequence[int]:
        """Return the widths of a group that are worth choosing, ascending up to the full one; all by default.

        Args:
            group: Index of the group.
            full: Its full width.
        """
        return range(1, full + 1)

    def show(self, value: float) -> str:
        """Return a number of this cost as text.

        Args:
            value: The number.
        """
        return f"{value:,.0f}" if not self.unit else f"{value:,.4g} {self.unit}"


@dataclasses.dataclass(frozen=True)
class Polynomial(Cost):
    """The polynomial constant + sum_i linear[i] w_i + sum_(i<=j) bilinear[i, j] w_i w_j of the widths w, in channels.

    The groups are in the order of `Graph.groups`.
    """

    constant: int
    """Cost of layers that no group touches."""
    linear: tuple[int, ...]
    """Cost per channel of each group."""
    bilinear: dict[tuple[int, int], int]
    """Cost per pair of channels of the groups i <= j."""
    calls: tuple[CallCost, ...] = dataclasses.field(default=(), repr=False, compare=False)
    """What was summed."""

    def total(self, widths: Sequence[int]) -> int:
        """Return the cost of one forward pass of one image.

        Args:
            widths: Number of channels of each group.
        """
        assert len(widths) == len(self.linear)
        pairs = sum(cost * widths[i] * widths[j] for (i, j), cost in self.bilinear.items())
        return self.constant + sum(c * w for c, w in zip(self.linear, widths, strict=True)) + pairs

    def slopes(self, widths: Sequence[int]) -> list[int]:
        """Return the derivative of the total by the width of each group.

        Removing r channels of group i saves r slopes[i] - r^2 bilinear[i, i].

        Args:
            widths: Number of channels of each group.

        Returns:
            Cost per channel for each group.
        """
        result = list(self.linear)
        for (i, j), cost in self.bilinear.items():
            result[i] += cost * widths[j]
            result[j] += cost * widths[i]
        return result

    def per_channel(self, widths: Sequence[int]) -> list[int]:
        """Return for each group what is saved by removing one channel.

        Args:
            widths: Number of channels of each group.
        """
        return [slope - self.bilinear.get((i, i), 0) for i, slope in enumerate(self.slopes(widths))]

    def by_layer(self, widths: Sequence[int]) -> dict[str, float]:
        """Return what each layer costs, by its name.

        Args:
            widths: Number of channels of each group.
        """
        result: dict[str, float] = {}
        for name, cost, *sides in self.calls:
            if cost is None:
                continue
            before, after = (sum(w if g is None else widths[g] for g, w in side) for side in sides)
            of_call = cost.constant + cost.per_input * before + cost.per_output * after
            of_call += cost.per_pair * before * after // cost.num_groups
            result[name] = result.get(name, 0) + of_call
        return result
