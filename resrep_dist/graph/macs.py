"""Multiply-adds as a function of the widths of the prunable groups.

Convention: convolutions and dense layers count, with one multiply-add per weight and output position. Bias, batch norm,
activations, pooling and compactors, which are folded by the merge, do not count.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class MultiplyAdds:
    """The polynomial constant + sum_i linear[i] w_i + sum_(i<=j) bilinear[i, j] w_i w_j of the widths w, in channels.

    The groups are in the order of `Graph.groups`.
    """

    constant: int
    """Multiply-adds of layers that no group touches."""
    linear: tuple[int, ...]
    """Multiply-adds per channel of each group."""
    bilinear: dict[tuple[int, int], int]
    """Multiply-adds per pair of channels of the groups i <= j."""

    def total(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds of one forward pass of one image.

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
            Multiply-adds per channel for each group.
        """
        result = list(self.linear)
        for (i, j), cost in self.bilinear.items():
            result[i] += cost * widths[j]
            result[j] += cost * widths[i]
        return result

    def per_channel(self, widths: Sequence[int]) -> list[int]:
        """Return for each group the multiply-adds that are saved by removing one channel.

        Args:
            widths: Number of channels of each group.
        """
        return [slope - self.bilinear.get((i, i), 0) for i, slope in enumerate(self.slopes(widths))]
