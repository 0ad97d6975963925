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

    def slopes(self, widths: Sequence[int]) -> list[int]:
        """Derivative of the total by each width; r channels fewer save r slope - r r bilinear[i, i]."""
        result = list(self.linear)
        for (i, j), cost in self.bilinear.items():
            result[i] += cost * widths[j]
            result[j] += cost * widths[i]
        return result

    def per_channel(self, widths: Sequence[int]) -> list[int]:
        """Multiply-adds that one channel fewer in each group saves at the given widths."""
        return [slope - self.bilinear.get((i, i), 0) for i, slope in enumerate(self.slopes(widths))]
