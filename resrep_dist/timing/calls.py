"""Calls of layers whose number of channels pruning changes."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

GroupSegments = tuple[tuple[int | None, int], ...]
"""Channels of a tensor: index of their group (None if they are not prunable) and how many they are, part by part."""


@dataclasses.dataclass(frozen=True)
class WeightedCall:
    """A call of a layer with multiply-adds whose number of channels pruning changes."""

    name: str
    """Name of the layer in the flat model."""
    signature: str
    """JSON of its class, its settings, the height and width of its input, and which of its channels are pruned."""
    inputs: GroupSegments
    """Channels of its first input."""
    output: GroupSegments
    """Channels of its output."""
    is_per_channel: bool
    """True if it treats every channel alone, so that it has as many outputs as inputs."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "WeightedCall":
        """Return the call that `dataclasses.asdict` made these values of.

        Args:
            values: The values, after they were read from JSON.
        """
        sides = {name: tuple((group, int(width)) for group, width in values[name]) for name in ("inputs", "output")}
        return cls(values["name"], values["signature"], sides["inputs"], sides["output"], values["is_per_channel"])

    @property
    def full_widths(self) -> tuple[int, int]:
        """Number of input and of output channels at full width."""
        return sum(width for _, width in self.inputs), sum(width for _, width in self.output)

    @property
    def key(self) -> tuple[str, int, int]:
        """Signature, and number of input and output channels at full width: equal calls take equal time."""
        return self.signature, *self.full_widths

    @property
    def kind(self) -> str:
        """Class of the layer, size of its kernel and whether it treats every channel alone, as in "Conv2D 3x3"."""
        text = json.loads(self.signature)
        size = "x".join(map(str, text.get("kernel_size", ())))
        return f"{text['layer']} {size} {'by channel' if self.is_per_channel else ''}".strip()

    @property
    def size(self) -> str:
        """Height and width of its input, as in "28x28"."""
        return "x".join(map(str, json.loads(self.signature)["size"]))

    @property
    def num_parts(self) -> int:
        """Number of groups of a grouped convolution, which its widths are multiples of; 1 for other layers."""
        return int(json.loads(self.signature).get("groups", 1))

    @property
    def changes(self) -> tuple[bool, bool]:
        """Whether pruning changes the number of inputs, and of outputs on their own."""
        of_inputs, of_output = (any(group is not None for group, _ in side) for side in (self.inputs, self.output))
        return of_inputs, of_output and not self.is_per_channel

    @property
    def is_scanned(self) -> tuple[bool, bool]:
        """Whether blocks of channels are looked for in the inputs of its kind, and in the outputs.

        They are not in a grouped convolution, whose widths are multiples of its groups.
        """
        of_inputs, of_outputs = self.changes
        return of_inputs and self.num_parts == 1, of_outputs and self.num_parts == 1
