"""Deleting dead channels of a plain model: with kerassurgeon, and by slices where it cannot."""

import contextlib
import io
import logging
import types
from collections.abc import Callable, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph import CallInputs, Graph, copy_weights, rebuild
from resrep_dist.graph.kinds import Narrowed
from resrep_dist.graph.table import ACTIVATIONS
from resrep_dist.layers.compactor import Compactor
from resrep_dist.merging.folding import channels_where

import numpy as np
import tensorflow as tf
from tensorflow import keras


def delete_channels(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    """The folded model without its dead channels; `dead` is bool [D] for each group."""
    if not any(channels.any() for channels in dead):
        return model
    if kerassurgeon_can(graph):
        return _delete_with_kerassurgeon(model, graph, dead)
    return keep_channels(model, graph, [~channels for channels in dead])


def kerassurgeon_can(graph: Graph) -> bool:
    """The rule for the path: every group is one convolution, no layer is shared, and it knows all that channels reach.

    It goes on silently where the inputs of an addition lose different channels, so it gets no group of several; and
    it gives all calls of a shared layer the channels of the first.
    """
    reached = [channels.kind for channels in graph.channels.values() if channels.is_in_a_group]
    is_plain = all(len(group.layers) == 1 for group in graph.groups)
    is_plain = is_plain and not any(channels.is_shared for channels in graph.channels.values())
    return is_plain and all(kind.known_to_kerassurgeon for kind in reached)


def keep_channels(model: keras.Model, graph: Graph, kept: Sequence[np.ndarray]) -> keras.Model:
    """The model anew from its configurations at smaller widths, every weight by the indices that it keeps.

    With compactors in it, these lose the channels, and what stands before them does not.

    Args:
        graph: at the model's widths.
        kept: for each group bool [D], the channels that it keeps.
    """
    weights: dict[str, list[np.ndarray]] = {}
    narrow_layer = _narrower(model, graph, kept)

    def call_narrow(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        changes, arrays = narrow_layer(layer)
        if arrays:
            weights[layer.name] = arrays
        # A shared layer, an activation, has no changes: its one clone is for all its calls.
        if changes:
            clone = type(layer).from_config({**clone.get_config(), **changes})
        return clone(*inputs.args, **inputs.kwargs)

    narrow = rebuild(model, call_narrow)
    copy_weights(model, narrow, skip=weights)
    for name, arrays in weights.items():
        narrow.get_layer(name).set_weights(arrays)
    return narrow


def kept_weights(model: keras.Model, graph: Graph, kept: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The weights that `keep_channels` gives to each layer, by the layer's name, without a model of them."""
    narrow_layer = _narrower(model, graph, kept)
    return {layer.name: narrow_layer(layer).weights or layer.get_weights() for layer in model.layers if layer.weights}


def _narrower(model: keras.Model, graph: Graph, kept: Sequence[np.ndarray]) -> Callable[[keras.layers.Layer], Narrowed]:
    """What a layer of the model changes in its configuration, and its weights, at the kept channels."""
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
    # kerassurgeon knows the layer Activation but not ReLU and its like: these step aside meanwhile.
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
    # A rebuilt model is also free of kerassurgeon's traces: it calls new layers where old ones stood.
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
    return original.__class__.from_config(original.get_config()) if original else clone


def _kerassurgeon() -> Any:
    """kerassurgeon, mended: it asks isinstance(x, tf.Tensor), which no Keras tensor is since TensorFlow 2.4."""
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
