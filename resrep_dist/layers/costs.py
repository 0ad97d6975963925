"""Multiply-adds of a model with compactors."""

import math
from collections.abc import Sequence

from resrep_dist.graph import Graph, nodes

from tensorflow import keras


def training_macs(model: keras.Model, graph: Graph, widths: Sequence[int], is_refolded: bool = False) -> int:
    """Return the multiply-adds of a forward pass of one image through a model in training, with its compactors.

    Unlike `Graph.macs` this includes the compactors. The model need not have the widths yet, so that the cost of a
    smaller model is known before it is built.

    Args:
        model: The model with compactors, at full width.
        graph: Graph of the original model.
        widths: Number of channels of each group behind its compactors, at most those of the model.
        is_refolded: True if the layers before the compactors have these widths too, False if they have full width.
    """
    width_of = {
        layer.compactor: w * g.num_parts for g, w in zip(graph.groups, widths, strict=True) for layer in g.layers
    }
    compacted = {layer.name for layer in graph.layers}
    channels = graph.at_widths(widths).channels
    total = 0
    for node in nodes(model):
        name, shape = node.layer.name, node.output_shapes
        if name in width_of:
            width, kernel = width_of[name], node.layer.kernel
            total += math.prod(shape[1:-1]) * (width // node.layer.groups if is_refolded else kernel.shape[-2]) * width
        elif (cost := channels[name].kind.macs(node)) is not None:
            before = sum(width for _, width in channels[name].inputs[0])
            is_whole = name in compacted and not is_refolded
            after = shape[-1] if is_whole else sum(width for _, width in channels[name].output)
            total += cost.constant + cost.per_input * before + cost.per_output * after
            total += cost.per_pair * before * after // cost.num_groups
    return total
