"""Describes calls of layers by what their time depends on, so that equal ones are measured once."""

import dataclasses
import json
from typing import Any

from resrep_dist.graph.kinds import UnitMacs
from resrep_dist.timing.calls import GroupSegments, WeightedCall

# What names or trains a layer, and does not change what it computes of which shape.
_IRRELEVANT = ("name", "trainable", "dtype", "initializer", "regularizer", "constraint", "batch_input_shape", "build")
# What follows from the channels, or is measured with them.
_CHANNELS = ("filters", "units", "use_bias", "activation")


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
