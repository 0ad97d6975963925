"""Layers where tensors meet: their channels are added, multiplied, or put side by side."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.channels import Blocks, ChannelSets, State
from resrep_dist.graph.kinds import Kind, on_vectors, total_width

import numpy as np


class Join(Kind):
    """A sum and its like: the channels of all inputs meet one by one."""

    def trace(self, node: Any, inputs: Sequence[Blocks], channels: ChannelSets) -> Blocks:
        name = f"the {type(node.layer).__name__} {node.layer.name}"
        sets = [[channels.find(block.variable) for block in blocks] for blocks in inputs]
        if any(other != sets[0] for other in sets):
            if not channels.residual_groups:
                reason = f"its channels meet others in {name}; prune.residual_groups prunes them together"
                channels.keep([block for blocks in inputs for block in blocks], reason)
            else:
                join_all(inputs, channels, name)
        widest = max(inputs, key=total_width)
        return tuple(block.at(max(_states_beside(index, inputs))) for index, block in enumerate(widest))

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return on_vectors(node.layer, inputs)


class Multiply(Join):
    """A product: a gate, or an activation written by hand. A dead channel is zero if one of its factors is.

    Where a dead channel of the gated tensor is zero, its gate may hold anything, so the gate needs no compactor.
    Where it is a constant, the gate gets one: both are constants then.
    """

    def trace(self, node: Any, inputs: Sequence[Blocks], channels: ChannelSets) -> Blocks:
        name = f"the Multiply {node.layer.name}"
        join_all(inputs, channels, name)
        sizes = [_size(shape) for shape in node.input_shapes]
        widest = max(inputs, key=total_width)
        is_gate = [size < max(sizes) for size in sizes]
        result = []
        for index, block in enumerate(widest):
            states = _states_beside(index, inputs)
            gated = [state for state, gate in zip(states, is_gate, strict=True) if not gate]
            if State.ZERO in gated:
                self._note_gates(index, inputs, is_gate, channels)
                result.append(block.at(State.ZERO))
            elif State.VARYING in states:
                channels.keep([block], f"a dead channel would be a constant, and {name} multiplies it by a gate")
                result.append(block.at(State.VARYING))
            else:
                result.append(block.at(min(states)))
        return tuple(result)

    @staticmethod
    def _note_gates(index: int, inputs: Sequence[Blocks], is_gate: Sequence[bool], channels: ChannelSets) -> None:
        gated = {blocks[index].variable for blocks, gate in zip(inputs, is_gate, strict=True) if not gate}
        for blocks, gate in zip(inputs, is_gate, strict=True):
            producer = channels.producers[blocks[index].variable] if gate and index < len(blocks) else None
            if producer and blocks[index].variable not in gated:
                channels.possible_gates.add(producer.name)


class Concatenate(Kind):
    """Channels side by side."""

    def trace(self, node: Any, inputs: Sequence[Blocks], channels: ChannelSets) -> Blocks:
        return tuple(block for blocks in inputs for block in blocks)

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(inputs)


def join_all(inputs: Sequence[Blocks], channels: ChannelSets, name: str) -> None:
    """Let channels that meet one by one live and die together; a single channel that meets all stays."""
    widest = max(inputs, key=total_width)
    for blocks in inputs:
        if [block.width for block in blocks] == [block.width for block in widest]:
            for ours, theirs in zip(widest, blocks, strict=True):
                channels.join(ours.variable, theirs.variable)
        elif total_width(blocks) == 1:
            channels.keep(blocks, f"it is a single channel that meets many in {name}")
        else:
            for one, other in ((blocks, widest), (widest, blocks)):
                if len({channels.find(block.variable) for block in other}) == 1:
                    channels.divide(one, len(other))
            channels.keep([*blocks, *widest], f"its channels meet differently divided ones in {name}")


def _states_beside(index: int, inputs: Sequence[Blocks]) -> list[State]:
    """States of the inputs where the widest one has its block `index`; a single channel is never dead."""
    return [blocks[index].state if index < len(blocks) and total_width(blocks) > 1 else State.VARYING
            for blocks in inputs]  # fmt: skip


def _size(shape: Sequence[int | None]) -> int:
    """Pixels of a tensor to compare; an open size is a large one."""
    return math.prod(size or 1 << 16 for size in shape[1:-1])
