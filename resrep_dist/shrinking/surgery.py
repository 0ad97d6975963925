"""A live model at smaller widths, its optimizer's state with it: pruning that gets cheaper while it prunes."""

from collections.abc import Mapping, Sequence

from resrep_dist.checkpoints.state import model_variables, plain_name
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.graph.weighted import Weighted
from resrep_dist.layers.insertion import live_graph
from resrep_dist.layers.sync_batch_norm import copy_clusters
from resrep_dist.merging.folding import dead_constants
from resrep_dist.merging.surgery import keep_channels, kept_weights
from resrep_dist.shrinking.refolding import refolded

import numpy as np
import tensorflow as tf
from tensorflow import keras

_BatchNorm = keras.layers.BatchNormalization


def with_channels(model: keras.Model, graph: Graph, channels: KeptChannels) -> keras.Model:
    """A model of the shape that a run has with these channels, for weights to be loaded into.

    Args:
        model: with compactors, at full width; returned as it is if all channels are kept.
        graph: of the original model.
    """
    if channels == KeptChannels.all_of(graph):
        return model
    narrow = without_channels(model, graph, channels.dead(graph))
    return refolded(narrow, graph) if channels.is_refolded else narrow


def removable(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those of the dead channels, for each group bool [D], that a live model can lose.

    A channel that is a constant behind a batch norm or a sigmoid can where what it gives to a consumer can go into
    the consumer's bias, or into the running mean of the batch norm right behind it.
    """
    live = live_graph(model, graph)
    result = [channels.copy() for channels in dead]
    for name in dead_constants(model, live, dead):
        layer = model.get_layer(name)
        if not layer.use_bias and _batch_norm_behind(layer) is None:
            for group, _ in live.channels[name].inputs[0]:
                if group is not None:
                    result[group][:] = False
    return result


def without_channels(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    """The model with compactors without these `removable` channels; the function is the same.

    Where all consumers receive zeros from dead channels, as in models without depthwise layers, the gradients of
    everything that stays are the same too; also where a batch norm follows the consumer, since it takes any
    constant out (its running mean alone then goes another way). Not so with dropout, whose random numbers change with
    the width, and with a limit on the gradients' norm, in which rows that are gone no longer count.
    """
    live = live_graph(model, graph)
    narrow = copy_clusters(keep_channels(model, live, [~channels for channels in dead]), model)
    for name, constants in dead_constants(model, live, dead).items():
        kind = live.channels[name].kind
        assert isinstance(kind, Weighted)
        response = kind.response(kind.kernels(model.get_layer(name)), constants)
        layer = narrow.get_layer(name)
        if layer.use_bias:
            layer.bias.assign_add(response)
        elif (batch_norm := _batch_norm_behind(layer)) is not None:
            batch_norm.moving_mean.assign_sub(response)
    return narrow


def narrow_velocities(
    model: keras.Model, graph: Graph, dead: Sequence[np.ndarray], velocities: Mapping[str, tf.Variable]
) -> dict[str, np.ndarray]:
    """The velocities, by the names of their weights, of the model without these channels."""
    variables = model_variables(model)
    weights = {name: variable.numpy() for name, variable in variables.items()}
    try:
        # A velocity loses the same rows and columns as its weight. The surgery reads its arrays from a model's
        # weights, so the velocities stand in their place while it does, and no second model is built for them.
        for name, variable in variables.items():
            variable.assign(velocities[name] if name in velocities else tf.zeros_like(variable))
        narrow = kept_weights(model, live_graph(model, graph), [~channels for channels in dead])
    finally:
        for name, variable in variables.items():
            variable.assign(weights[name])
    layers = [(model.get_layer(name), arrays) for name, arrays in narrow.items()]
    named = [pair for layer, arrays in layers for pair in zip(layer.weights, arrays, strict=True)]
    return {plain_name(variable): array for variable, array in named if plain_name(variable) in velocities}


def _batch_norm_behind(layer: keras.layers.Layer) -> keras.layers.BatchNormalization | None:
    """The batch norm that alone receives a layer's output."""
    followers = [node.layer for node in layer.outbound_nodes]
    return followers[0] if len(followers) == 1 and isinstance(followers[0], _BatchNorm) else None
