"""Convolution + batch norm + compactor -> one convolution, and what dead channels still hold -> biases."""

from collections.abc import Mapping, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph import CallInputs, Graph, PrunableLayer, copy_weights, nodes, rebuild
from resrep_dist.graph.channels import GroupSegments
from resrep_dist.graph.kinds import batch_norm_as_affine
from resrep_dist.graph.weighted import Weighted
from resrep_dist.layers.compactor import Compactor

import numpy as np
from tensorflow import keras


def fold_arrays(
    kernel: np.ndarray, bias: np.ndarray, scale: np.ndarray, offset: np.ndarray, compactor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold y -> Q (scale * (K x + bias) + offset) into one kernel and bias (section 3.2).

    Args:
        kernel: [height, width, channels in, D].
        bias, scale, offset: [D].
        compactor: [D, D_out].
    """
    arrays = (np.asarray(array, np.float64) for array in (kernel, bias, scale, offset, compactor))
    kernel, bias, scale, offset, compactor = arrays
    return (kernel * scale) @ compactor, (bias * scale + offset) @ compactor


def fold(
    kernel: np.ndarray, bias: np.ndarray, batch_norm: keras.layers.BatchNormalization | None, compactor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same with a batch norm in inference, if there is one."""
    scale, offset = np.ones(len(bias)), np.zeros(len(bias))
    if batch_norm is not None:
        scale, offset = batch_norm_as_affine(batch_norm)
    return fold_arrays(kernel, bias, scale, offset, compactor)


def merge_convolution(
    convolution: keras.layers.Conv2D, compactor: Compactor, batch_norm: keras.layers.BatchNormalization | None = None
) -> keras.layers.Conv2D:
    """One convolution that does what convolution, batch norm (in inference) and compactor do in a row (section 3.2).

    All its channels are there, those of zero rows as zeros.

    Raises:
        ModelError: for a grouped convolution, or one with an activation in it.
    """
    if convolution.groups != 1 or convolution.activation is not keras.activations.linear:
        raise ModelError(
            f"convolution {convolution.name}: grouped or with an activation in it; expected a plain one, "
            "with the activation in a layer of its own behind the compactor"
        )
    bias = convolution.bias.numpy() if convolution.use_bias else np.zeros(convolution.filters)
    kernel, bias = fold(convolution.kernel.numpy(), bias, batch_norm, compactor.matrix())
    config = {**convolution.get_config(), "use_bias": True, "filters": kernel.shape[-1]}
    merged = keras.layers.Conv2D.from_config(config)
    is_last = convolution.data_format == "channels_last"
    merged.build([None, None, None, kernel.shape[2]] if is_last else [None, kernel.shape[2], None, None])
    merged.set_weights([kernel, bias])
    return merged


def channels_where(of_groups: Sequence[np.ndarray], segments: GroupSegments, elsewhere: bool) -> np.ndarray:
    """Bool [C] over a tensor's channels, from bool [D] of each group; `elsewhere` for channels that stay."""
    parts = [np.full(width, elsewhere) if group is None else of_groups[group] for group, width in segments]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def width_behind_compactor(model: keras.Model, graph: Graph, layer: PrunableLayer) -> dict[str, int]:
    """The change of a layer's configuration that gives it as many channels as its compactor has behind it."""
    kind = graph.channels[layer.name].kind
    assert isinstance(kind, Weighted)
    return {kind.width_key: int(model.get_layer(layer.compactor).kernel.shape[-1])}


def fold_model(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    """The plain model, as wide as its compactors: none of them is left, and nothing depends on a dead channel any more.

    Each layer with a compactor holds its batch norm and its compactor; each consumer holds in its bias what the
    dead channels give it, and zeros for them in its kernel.

    Args:
        dead: for each group bool [D], its dead channels.
    """
    constants = dead_constants(model, graph, dead)
    compacted = {layer.name: layer for layer in graph.layers}
    widths = {layer.name: width_behind_compactor(model, graph, layer) for layer in graph.layers}
    skipped = {layer.compactor for layer in graph.layers} | {layer.batch_norm for layer in graph.layers}

    def without_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if layer.name in skipped:
            return inputs.args[0]
        if layer.name in compacted or layer.name in constants:
            clone = type(layer).from_config({**clone.get_config(), "use_bias": True, **widths.get(layer.name, {})})
        return clone(*inputs.args, **inputs.kwargs)

    plain = rebuild(model, without_compactor)
    changed = compacted.keys() | constants.keys()
    copy_weights(model, plain, skip=changed)
    for name in changed:
        kernels, bias = _without_dead_inputs(model.get_layer(name), graph, dead, constants.get(name))
        if name in compacted:
            layer = compacted[name]
            batch_norm = model.get_layer(layer.batch_norm) if layer.batch_norm else None
            kernels[-1], bias = fold(kernels[-1], bias, batch_norm, model.get_layer(layer.compactor).matrix())
        plain.get_layer(name).set_weights([*kernels, bias])
    return plain


def _without_dead_inputs(
    layer: keras.layers.Layer, graph: Graph, dead: Sequence[np.ndarray], constants: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Kernels and bias of a layer whose bias holds the constants of its dead inputs, [C_in]."""
    channels = graph.channels[layer.name]
    assert isinstance(channels.kind, Weighted)
    kernels = channels.kind.kernels(layer)
    bias = layer.bias.numpy() if layer.use_bias else np.zeros(channels.kind.num_outputs(kernels))
    if constants is not None:
        bias = bias + channels.kind.response(kernels, constants)
        kernels[0] = kernels[0].copy()
        kernels[0][..., channels.kind.rows(channels_where(dead, channels.inputs[0], False)), :] = 0.0
    return kernels, bias


def dead_constants(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
    """For each layer that receives constants from dead channels: them, [C_in], and zeros for the living."""
    values = {str(id(tensor)): np.zeros(tensor.shape[-1] or 0) for tensor in model.inputs}
    found = {}
    for node in nodes(model):
        inputs = [values[key] for key in node.flat_input_ids]
        name = node.layer.name
        if isinstance(node.layer, Compactor):
            output = np.zeros(node.output_shapes[-1])
        else:
            channels = graph.channels[name]
            output = channels.kind.constant(node, inputs)
            if isinstance(channels.kind, Weighted):
                constants = np.where(channels_where(dead, channels.inputs[0], False), inputs[0], 0.0)
                if constants.any():
                    found[name] = constants
        values |= dict.fromkeys(node.flat_output_ids, output)
    return found
