"""Multiply-adds of a model with compactors."""

import math

from resrep_dist.graph import Graph, nodes
from resrep_dist.graph.kept_channels import KeptChannels

from tensorflow import keras


def training_macs(model: keras.Model, graph: Graph, kept: KeptChannels) -> int:
    """Return the multiply-adds of a forward pass of one image through a model in training, with its compactors.

    Unlike `Graph.macs` this includes the compactors. The model need not have the widths yet, so that the cost of a
    smaller model is known before it is built.

    Args:
        model: The model in training, with at least these channels.
        graph: Graph of the original model.
        kept: The channels to count, and whether there are compactors.
    """
    width_of = {
        layer.compactor: w * g.num_parts for g, w in zip(graph.groups, kept.widths, strict=True) for layer in g.layers
    }
    compacted = {layer.name for layer in graph.layers}
    channels = graph.at_widths(kept.widths).channels
    total = 0
    for node in nodes(model):
        name, shape = node.layer.name, node.output_shapes
        if name in width_of:
            if kept.is_merged:
                continue
            total += math.prod(shape[1:-1]) * node.layer.kernel.shape[-2] * width_of[name]
        elif (cost := channels[name].kind.macs(node)) is not None:
            before = sum(width for _, width in channels[name].inputs[0])
            is_whole = name in compacted and not kept.is_merged
            after = shape[-1] if is_whole else sum(width for _, width in channels[name].output)
            total += cost.constant + cost.per_input * before + cost.per_output * after
            total += cost.per_pair * before * after // cost.num_groups
    return total
