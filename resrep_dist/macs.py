"""Multiply-adds as a function of the widths of the prunable layers. No Keras, no files.

Convention: convolutions and dense layers count, one multiply-add per weight and output position; bias,
batch norm, activations, pooling and the compactors (which the merge folds away) do not.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class MultiplyAdds:
    """constant + sum_i linear[i] w_i + sum_(i<j) bilinear[i, j] w_i w_j, widths w in channels."""

    constant: int
    linear: tuple[int, ...]
    bilinear: dict[tuple[int, int], int]

    def total(self, widths: Sequence[int]) -> int:
        """Multiply-adds of one forward pass of one image at the given widths."""
        assert len(widths) == len(self.linear)
        pairs = sum(cost * widths[i] * widths[j] for (i, j), cost in self.bilinear.items())
        return self.constant + sum(c * w for c, w in zip(self.linear, widths, strict=True)) + pairs

    def neighbours(self) -> list[list[tuple[int, int]]]:
        """For each layer the layers it is multiplied with: (layer, cost per channel pair)."""
        result: list[list[tuple[int, int]]] = [[] for _ in self.linear]
        for (i, j), cost in self.bilinear.items():
            result[i].append((j, cost))
            result[j].append((i, cost))
        return result

    def per_channel(self, widths: Sequence[int]) -> list[int]:
        """Multiply-adds that one channel of each layer costs at the given widths."""
        return [
            linear + sum(cost * widths[other] for other, cost in near)
            for linear, near in zip(self.linear, self.neighbours(), strict=True)
        ]
