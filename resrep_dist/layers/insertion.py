"""Compactors put into a model, and the graph of a model that has them."""

from typing import Any

from resrep_dist.graph import Graph, copy_weights, rebuild
from resrep_dist.layers.compactor import Compactor

from tensorflow import keras


def insert_compactors(model: keras.Model, graph: Graph) -> keras.Model:
    """The same model, flat, with an identity compactor behind every prunable layer; equal outputs, own weights."""
    sites = {layer.site: layer for layer in graph.layers}

    def with_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: Any) -> Any:
        outputs = clone(*inputs.args, **inputs.kwargs)
        if clone.name not in sites:
            return outputs
        return Compactor(name=sites[clone.name].compactor, groups=sites[clone.name].num_groups)(outputs)

    pruned = rebuild(model, with_compactor)
    copy_weights(model, pruned)
    return pruned


def compactors_of(model: keras.Model, graph: Graph) -> list[Compactor]:
    """The model's compactors in the graph's order."""
    return [model.get_layer(layer.compactor) for layer in graph.layers]


def live_graph(model: keras.Model, graph: Graph) -> Graph:
    """The graph of the original model at the widths that the compactors of `model` still have."""
    return graph.at_widths(
        [model.get_layer(g.layers[0].compactor).kernel.shape[-1] // g.num_parts for g in graph.groups]
    )
