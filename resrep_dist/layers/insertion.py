"""Inserts compactors into a model, and finds them again."""

from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph import Graph, copy_weights, rebuild
from resrep_dist.layers.compactor import Compactor

from tensorflow import keras


def insert_compactors(model: keras.Model, graph: Graph) -> keras.Model:
    """Return a flat copy of a model with a compactor behind every prunable layer.

    The compactors are the identity, so the outputs are equal to those of the model.

    Args:
        model: The model that was traced, which is not changed.
        graph: Its graph.

    Raises:
        ModelError: If the graph is that of a model with other layers.
    """
    sites = {layer.site: layer for layer in graph.layers}

    def with_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: Any) -> Any:
        outputs = clone(*inputs.args, **inputs.kwargs)
        if clone.name not in sites:
            return outputs
        return Compactor(name=sites[clone.name].compactor, groups=sites[clone.name].num_groups)(outputs)

    pruned = rebuild(model, with_compactor)
    names = {layer.name for layer in pruned.layers}
    if missing := [layer.site for layer in graph.layers if layer.compactor not in names]:
        raise ModelError(
            f"model {model.name}: it has no layer {missing[0]}, which is in the graph; give the model that was traced, "
            "or name its layers: Keras numbers layers without a name anew each time a model is built"
        )
    copy_weights(model, pruned)
    return pruned


def has_compactors(model: keras.Model) -> bool:
    """Return False for a model that was merged during its training, or never had compactors."""
    return any(isinstance(layer, Compactor) for layer in model.layers)


def with_compactors(model: keras.Model, graph: Graph) -> keras.Model:
    """Return a model in training with compactors: itself, or if it was merged in training a copy with new ones.

    Args:
        model: A model in training.
        graph: Graph of the original model.
    """
    return model if has_compactors(model) else insert_compactors(model, graph)


def compactors_of(model: keras.Model, graph: Graph) -> list[Compactor]:
    """Return the compactors of a model, in the order of `graph.layers`; none of one that was merged in training."""
    return [model.get_layer(layer.compactor) for layer in graph.layers] if has_compactors(model) else []


def live_graph(model: keras.Model, graph: Graph) -> Graph:
    """Return the graph at the widths that the compactors of a model have now.

    Args:
        model: The model with compactors, shrunken or not.
        graph: Graph of the original model.
    """
    return graph.at_widths(
        [model.get_layer(g.layers[0].compactor).kernel.shape[-1] // g.num_parts for g in graph.groups]
    )
