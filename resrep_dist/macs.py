"""Multiply-adds as a function of the widths of the prunable groups. No Keras, no files.

Convention: convolutions and dense layers count, one multiply-add per weight and output position; bias,
batch norm, activations, pooling and the compactors (which the merge folds away) do not.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class MultiplyAdds:
    """constant + sum_i linear[i] w_i + sum_(i<=j) bilinear[i, j] w_i w_j, widths w in channels."""

    constant: int
    linear: tuple[int, ...]
    bilinear: dict[tuple[int, int], int]

    def total(self, widths: Sequence[int]) -> int:
        """Multiply-adds of one forward pass of one image at the given widths."""
        assert len(widths) == len(self.linear)
        pairs = sum(cost * widths[i] * widths[j] for (i, j), cost in self.bilinear.items())
        return self.constant + sum(c * w for c, w in zip(self.linear, widths, strict=True)) + pairs

    def neighbours(self) -> list[list[tuple[int, int]]]:
        """For each group the groups it is multiplied with: (group, cost per pair of channels).

        A group that is multiplied with itself (both ends of a convolution between residual additions) has itself
        there twice, as the derivative of w_i w_i has.
        """
        result: list[list[tuple[int, int]]] = [[] for _ in self.linear]
        for (i, j), cost in self.bilinear.items():
            result[i].append((j, cost))
            result[j].append((i, cost))
        return result

    def squares(self) -> list[int]:
        """Cost of w_i w_i for each group."""
        return [self.bilinear.get((i, i), 0) for i in range(len(self.linear))]

    def slopes(self, widths: Sequence[int]) -> list[int]:
        """Derivative of the total by each width; r channels fewer save r slope - r r square."""
        return [
            linear + sum(cost * widths[other] for other, cost in near)
            for linear, near in zip(self.linear, self.neighbours(), strict=True)
        ]

    def per_channel(self, widths: Sequence[int]) -> list[int]:
        """Multiply-adds that one channel fewer in each group saves at the given widths."""
        return [slope - square for slope, square in zip(self.slopes(widths), self.squares(), strict=True)]
