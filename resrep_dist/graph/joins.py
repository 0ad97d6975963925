"""Layers with several inputs: channels are added, multiplied or concatenated."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.channels import ChannelSets, Segments, State
from resrep_dist.graph.kinds import Kind, on_vectors, total_width

import numpy as np


class Join(Kind):
    """Elementwise operations on several inputs, such as Add: channel i of all inputs is combined."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        name = f"the {type(node.layer).__name__} {node.layer.name}"
        sets = [[channels.find(segment.variable) for segment in segments] for segments in inputs]
        if any(other != sets[0] for other in sets):
            if not channels.residual_groups:
                reason = f"its channels meet others in {name}; prune.residual_groups prunes them together"
                channels.keep([segment for segments in inputs for segment in segments], reason)
            else:
                join_all(inputs, channels, name)
        widest = max(inputs, key=total_width)
        return tuple(segment.at(max(_states_beside(index, inputs))) for index, segment in enumerate(widest))

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return on_vectors(node.layer, inputs)


class Multiply(Join):
    """A product: a gate (squeeze-and-excitation) or an activation built from its parts (x * sigmoid(x)).

    A dead channel of the product is zero if one of its factors is. If a dead channel of the gated tensor is zero, its
    gate may have any value, so the gate needs no compactor. If it is another constant, the gate gets a compactor, so
    that the product is a constant too.
    """

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        name = f"the Multiply {node.layer.name}"
        join_all(inputs, channels, name)
        sizes = [_size(shape) for shape in node.input_shapes]
        widest = max(inputs, key=total_width)
        is_gate = [size < max(sizes) for size in sizes]
        result = []
        for index, segment in enumerate(widest):
            states = _states_beside(index, inputs)
            gated = [state for state, gate in zip(states, is_gate, strict=True) if not gate]
            if State.ZERO in gated:
                self._note_gates(index, inputs, is_gate, channels)
                result.append(segment.at(State.ZERO))
            elif State.VARYING in states:
                channels.keep([segment], f"a dead channel would be a constant, and {name} multiplies it by a gate")
                result.append(segment.at(State.VARYING))
            else:
                result.append(segment.at(min(states)))
        return tuple(result)

    @staticmethod
    def _note_gates(index: int, inputs: Sequence[Segments], is_gate: Sequence[bool], channels: ChannelSets) -> None:
        # An input that is divided in another way may have fewer segments.
        beside = [(segments[index].variable, gate) for segments, gate in zip(inputs, is_gate, strict=True)
                  if index < len(segments)]  # fmt: skip
        gated = {variable for variable, gate in beside if not gate}
        for variable, gate in beside:
            producer = channels.producers[variable]
            if gate and producer and variable not in gated:
                channels.possible_gates.add(producer.name)


class Concatenate(Kind):
    """The channels of all inputs one after the other."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return tuple(segment for segments in inputs for segment in segments)

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(inputs)


def join_all(inputs: Sequence[Segments], channels: ChannelSets, name: str) -> None:
    """Join the sets of channels that are combined one by one.

    An input with a single channel is broadcast over all others; it is kept. Inputs that are divided in different ways
    are kept too, and a division is requested for the next trace if it could help. It does not help where one layer
    divides its channels and another has all of them in each part, as those of a flattened tensor are at each pixel.

    Args:
        inputs: Channels of each input.
        channels: The sets, changed in place.
        name: Description of the layer, for the reason that the user reads.
    """
    widest = max(inputs, key=total_width)
    differently_divided = f"its channels meet differently divided ones in {name}"
    for segments in inputs:
        if [segment.width for segment in segments] == [segment.width for segment in widest]:
            for ours, theirs in zip(widest, segments, strict=True):
                if channels.are_divided_alike(ours.variable, theirs.variable):
                    channels.join(ours.variable, theirs.variable)
                else:
                    channels.keep([ours, theirs], differently_divided)
        elif total_width(segments) == 1:
            channels.keep(segments, f"it is a single channel that meets many in {name}")
        else:
            for one, other in ((segments, widest), (widest, segments)):
                if len({channels.find(segment.variable) for segment in other}) == 1:
                    channels.request_parts(one, len(other))
            channels.keep([*segments, *widest], differently_divided)


def _states_beside(index: int, inputs: Sequence[Segments]) -> list[State]:
    """Return the states of all inputs at segment `index` of the widest one; a single channel is never dead."""
    return [segments[index].state if index < len(segments) and total_width(segments) > 1 else State.VARYING
            for segments in inputs]  # fmt: skip


def _size(shape: Sequence[int | None]) -> int:
    """Return the number of pixels of a tensor for comparisons; an open size counts as a large one."""
    return math.prod(size or 1 << 16 for size in shape[1:-1])
