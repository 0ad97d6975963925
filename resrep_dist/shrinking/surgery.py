"""Removes dead channels from a model in training and from the velocities of its optimizer."""

from collections.abc import Mapping, Sequence

from resrep_dist.checkpoints.variables import model_variables, variable_names
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.graph.weighted import Weighted
from resrep_dist.layers.insertion import live_graph
from resrep_dist.layers.sync_batch_norm import copy_clusters
from resrep_dist.merging.folding import dead_constants
from resrep_dist.merging.surgery import keep_channels, kept_weights
from resrep_dist.shrinking.early_merge import merged

import numpy as np
import tensorflow as tf
from tensorflow import keras

_BatchNorm = keras.layers.BatchNormalization


def with_channels(model: keras.Model, graph: Graph, channels: KeptChannels) -> keras.Model:
    """Return a model of the shape that a run has with the given channels, into which weights can be loaded.

    Args:
        model: A model with compactors, at full width.
        graph: Trace of the original model.
        channels: The channels that the model should have.

    Returns:
        A new model; `model` itself if all channels are kept.
    """
    if channels == KeptChannels.all_of(graph):
        return model
    narrow = without_channels(model, graph, channels.dead(graph))
    return merged(narrow, graph) if channels.is_merged else narrow


def removable(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the dead channels that a model in training can lose.

    After a batch norm or a sigmoid, a dead channel can have a constant value that is not 0. Such a channel can be
    removed if what it contributes to each of its consumers can be added to the consumer's bias, or to the running mean
    of the batch norm that directly follows the consumer.

    Args:
        model: A model with compactors.
        graph: Trace of the original model.
        dead: For each group bool [D], see `dead_channels`.

    Returns:
        For each group bool [D].
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
    """Return the model with compactors without dead channels. Its outputs in inference are the same.

    If all consumers receive zeros from dead channels, as in models without depthwise layers, the gradients of all other
    weights are the same too. That also holds if a batch norm follows the consumer, since it subtracts any constant;
    only its running mean then differs. It does not hold with dropout, whose random numbers depend on the width, and
    with a limit on the norm of the gradients, which no longer includes the removed rows.

    Args:
        model: A model with compactors.
        graph: Trace of the original model.
        dead: For each group bool [D], channels that are `removable`.
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
    """Return the velocities of the model without dead channels.

    Args:
        model: The model before `without_channels`.
        graph: Trace of the original model.
        dead: For each group bool [D], the channels that are removed.
        velocities: Velocities of the model, by the names of their weights.

    Returns:
        Velocities by the names of their weights.
    """
    variables = model_variables(model)
    weights = {name: variable.numpy() for name, variable in variables.items()}
    try:
        # A velocity loses the same rows and columns as its weight. The surgery reads arrays from a model's weights. So
        # the velocities are assigned to the weights while it does, which needs no second model.
        for name, variable in variables.items():
            variable.assign(velocities[name] if name in velocities else tf.zeros_like(variable))
        narrow = kept_weights(model, live_graph(model, graph), [~channels for channels in dead])
    finally:
        for name, variable in variables.items():
            variable.assign(weights[name])
    names = variable_names(model)
    layers = [(model.get_layer(name), arrays) for name, arrays in narrow.items()]
    named = [pair for layer, arrays in layers for pair in zip(layer.weights, arrays, strict=True)]
    return {names[variable.ref()]: array for variable, array in named if names[variable.ref()] in velocities}


def _batch_norm_behind(layer: keras.layers.Layer) -> keras.layers.BatchNormalization | None:
    """Return the batch norm that is the only layer to receive a layer's output; None otherwise."""
    followers = [node.layer for node in layer.outbound_nodes]
    return followers[0] if len(followers) == 1 and isinstance(followers[0], _BatchNorm) else None
