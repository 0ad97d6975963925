"""What a data source with random access is."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """Images in memory.

    Attributes:
        images: float32 [N, height, width, channels], normalised.
        labels: int64 [N], 0 <= label < num_classes.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or len(self.images) == 0:
            raise ValueError(f"expected as many images as labels, received {len(self.images)}, {len(self.labels)}")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise ValueError(
                f"expected labels from 0 to {self.num_classes - 1}, "
                f"received {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.images)
