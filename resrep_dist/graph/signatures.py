"""Describes calls of layers by what their time depends on, so that equal ones are measured once."""

import dataclasses
import json
from typing import Any

from resrep_dist.graph.channels import GroupSegments
from resrep_dist.graph.kinds import UnitMacs

# What names or trains a layer, and does not change what it computes of which shape.
_IRRELEVANT = ("name", "trainable", "dtype", "initializer", "regularizer", "constraint", "batch_input_shape", "build")
# What follows from the channels, or is measured with them.
_CHANNELS = ("filters", "units", "use_bias", "activation")


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
        """Class of the layer and size of its kernel, as in "Conv2D 3x3"."""
        text = json.loads(self.signature)
        size = "x".join(map(str, text.get("kernel_size", ())))
        return f"{text['layer']} {size}".strip()

    @property
    def size(self) -> str:
        """Height and width of its input, as in "28x28"."""
        return "x".join(map(str, json.loads(self.signature)["size"]))

    @property
    def changes(self) -> tuple[bool, bool]:
        """Whether pruning changes the number of inputs, and of outputs on their own."""
        of_inputs, of_output = (any(group is not None for group, _ in side) for side in (self.inputs, self.output))
        return of_inputs, of_output and not self.is_per_channel


def weighted_call(
    node: Any, macs: UnitMacs | None, inputs: GroupSegments, output: GroupSegments
) -> WeightedCall | None:
    """Return the description of a call; None if it has no multiply-adds, or pruning does not change it.

    Args:
        node: Keras' record of the call.
        macs: Its multiply-adds; None if they are not known.
        inputs: Channels of its first input.
        output: Channels of its output.
    """
    if not macs or not (macs.per_input or macs.per_output or macs.per_pair):
        return None
    if all(group is None for group, _ in (*inputs, *output)):
        return None
    config = {
        name: value
        for name, value in node.layer.get_config().items()
        if name not in _CHANNELS and not any(word in name for word in _IRRELEVANT)
    }
    if not macs.per_pair:
        config.pop("groups", None)  # of a depthwise convolution by groups: as many as channels
    shape = node.input_shapes[0] if isinstance(node.input_shapes, list) else node.input_shapes
    text = {"layer": type(node.layer).__name__, "size": list(shape[1:-1]), **config}
    call = WeightedCall(node.layer.name, "", inputs, output, not macs.per_pair)
    names = [name for name, is_changed in zip(("inputs", "outputs"), call.changes, strict=True) if is_changed]
    return dataclasses.replace(call, signature=json.dumps({**text, "pruned": names}, sort_keys=True))
