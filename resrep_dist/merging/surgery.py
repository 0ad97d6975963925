"""Deletes channels of a model: with kerassurgeon where it can, otherwise by slicing the weights."""

import contextlib
import io
import logging
import types
from collections.abc import Callable, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph import CallInputs, Graph, config_of, copy_weights, nodes, rebuild
from resrep_dist.graph.kinds import Narrowed
from resrep_dist.graph.table import ACTIVATIONS, OPERATORS
from resrep_dist.layers.compactor import Compactor
from resrep_dist.merging.folding import channels_where

import numpy as np
import tensorflow as tf
from tensorflow import keras


def delete_channels(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    """Return a folded model without its dead channels; the model itself if it has none.

    Args:
        model: The model of `fold_model`.
        graph: Its graph, at the widths of the model.
        dead: For each group bool [width], True for dead channels.

    Raises:
        ModelError: If kerassurgeon is needed and cannot be imported.
    """
    if not any(channels.any() for channels in dead):
        return model
    if kerassurgeon_can(graph) and _has_plain_calls(model):
        return _delete_with_kerassurgeon(model, graph, dead)
    return keep_channels(model, graph, [~channels for channels in dead])


def kerassurgeon_can(graph: Graph) -> bool:
    """Return True if kerassurgeon deletes the channels of this graph correctly.

    Every group must be a single layer, since kerassurgeon does not notice if the inputs of an addition lose different
    channels. No layer may be shared, since it gives all calls of a shared layer the channels of the first one. And it
    must know the kinds of all layers that the channels reach.
    """
    reached = [channels.kind for channels in graph.channels.values() if channels.is_in_a_group]
    is_plain = all(len(group.layers) == 1 for group in graph.groups)
    is_plain = is_plain and not any(channels.is_shared for channels in graph.channels.values())
    return is_plain and all(kind.known_to_kerassurgeon for kind in reached)


def _has_plain_calls(model: keras.Model) -> bool:
    """Return True if every layer is called with its inputs alone, as kerassurgeon calls them."""
    is_single = len(model.inputs) == len(model.outputs) == 1
    return is_single and not any(
        len(node.call_args) > 1
        or any(value is not None for value in node.call_kwargs.values())
        or type(node.layer).__name__ in OPERATORS
        for node in nodes(model)
    )


def keep_channels(model: keras.Model, graph: Graph, kept: Sequence[np.ndarray]) -> keras.Model:
    """Rebuild a model with some of its channels, by slicing the weights.

    If the model has compactors, these lose the channels, and the layers before them do not.

    Args:
        model: The model with or without compactors, which is not changed.
        graph: Its graph, at the widths of the model.
        kept: For each group bool [width], True for the channels that are kept.
    """
    weights: dict[str, list[np.ndarray]] = {}
    narrow_layer = _narrower(model, graph, kept)

    def call_narrow(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        changes, arrays = narrow_layer(layer)
        if arrays:
            weights[layer.name] = arrays
        # A shared layer, an activation, has no changes: its one clone is for all its calls.
        if changes:
            clone = type(layer).from_config({**config_of(clone), **changes})
        return clone(*inputs.args, **inputs.kwargs)

    narrow = rebuild(model, call_narrow)
    copy_weights(model, narrow, skip=weights)
    for name, arrays in weights.items():
        narrow.get_layer(name).set_weights(arrays)
    return narrow


def kept_weights(model: keras.Model, graph: Graph, kept: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return the weights that `keep_channels` gives to each layer, by its name, without building the model.

    Args:
        model: The model with or without compactors.
        graph: Its graph, at the widths of the model.
        kept: For each group bool [width], True for the channels that are kept.
    """
    narrow_layer = _narrower(model, graph, kept)
    return {layer.name: narrow_layer(layer).weights or layer.get_weights() for layer in model.layers if layer.weights}


def _narrower(model: keras.Model, graph: Graph, kept: Sequence[np.ndarray]) -> Callable[[keras.layers.Layer], Narrowed]:
    """Return a function that narrows any layer of the model to the kept channels; no weights if it stays as it is."""
    groups = zip(graph.groups, kept, strict=True)
    kept_by = {layer.compactor: np.tile(k, group.num_parts) for group, k in groups for layer in group.layers}
    compacted = graph.layers if any(isinstance(layer, Compactor) for layer in model.layers) else []
    producers, between = {layer.name for layer in compacted}, {layer.batch_norm for layer in compacted}

    def narrow(layer: keras.layers.Layer) -> Narrowed:
        if isinstance(layer, Compactor):
            mask = kept_by[layer.name]
            weights = [layer.kernel.numpy()[..., mask], layer.mask.numpy()[mask]]
            return Narrowed({"channels": int(mask.sum())}, weights)
        channels = graph.channels[layer.name]
        if not channels.is_in_a_group or layer.name in between:
            return Narrowed({}, [])
        of_input, of_output = (channels_where(kept, b, True) for b in (channels.inputs[0], channels.output))
        if layer.name in producers:
            of_output = np.ones(layer.output_shape[-1], bool)
        return channels.kind.narrow(layer, of_input, of_output)

    return narrow


def _delete_with_kerassurgeon(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    # kerassurgeon knows the layer Activation but not ReLU and the like, so these are replaced for as long as it works.
    activations = {layer.name: layer for layer in model.layers if isinstance(layer, ACTIVATIONS)}
    stand_in = rebuild(model, lambda layer, clone, inputs: _as_activation(layer, clone)(*inputs.args))
    copy_weights(model, stand_in)
    surgeon = _kerassurgeon().Surgeon(stand_in)
    for group, channels in zip(graph.groups, dead, strict=True):
        if channels.any():
            layer = stand_in.get_layer(group.name)
            surgeon.add_job("delete_channels", layer, channels=np.flatnonzero(channels).tolist())
    with contextlib.redirect_stdout(io.StringIO()):
        narrow = surgeon.operate()
    # Rebuilding also removes the calls that kerassurgeon leaves on the layers that it has replaced.
    slim = rebuild(narrow, lambda layer, clone, inputs: _restored(layer, clone, activations)(*inputs.args))
    copy_weights(narrow, slim)
    slim._name = model.name
    return slim


def _as_activation(layer: keras.layers.Layer, clone: keras.layers.Layer) -> keras.layers.Layer:
    return keras.layers.Activation("linear", name=layer.name) if isinstance(layer, ACTIVATIONS) else clone


def _restored(
    layer: keras.layers.Layer, clone: keras.layers.Layer, originals: dict[str, keras.layers.Layer]
) -> keras.layers.Layer:
    original = originals.get(layer.name)
    return original.__class__.from_config(config_of(original)) if original else clone


def _kerassurgeon() -> Any:
    """Import kerassurgeon and patch its isinstance(x, tf.Tensor), False for Keras tensors since TensorFlow 2.4."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import kerassurgeon
        import kerassurgeon.surgeon
        import kerassurgeon.utils
    except ImportError as error:
        raise ModelError(
            f"kerassurgeon cannot be imported ({error}); `resrep doctor` gives the command that installs it"
        ) from None
    finally:
        # It configures the root logger when it is imported.
        root.handlers[:], root.level = handlers, level
    keras_tensor = type(keras.Input([1]))
    proxy = types.SimpleNamespace(Tensor=(tf.Tensor, keras_tensor))
    kerassurgeon.utils.tf = kerassurgeon.surgeon.tf = proxy
    return kerassurgeon
