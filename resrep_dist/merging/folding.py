"""Folds convolution, batch norm and compactor into one convolution, and the values of dead channels into biases.

In inference a convolution, its batch norm and its compactor are three linear maps in a row, so their product is one
convolution (section 3.2 of the ResRep paper). Two things make that exact for whole models:

- A dead channel is zero behind its compactor, but not behind what follows: a batch norm or an activation such as the
  sigmoid turns the zero into another constant. That constant reaches the layers that lose the channel. `dead_constants`
  computes it layer by layer, and its effect on the outputs of such a layer is added to the layer's bias.
- The folded model has the width of its compactors, and the dead channels are still in it, with zeros where consumers
  read them. So it can be compared, and `surgery.py` can delete the channels without any further arithmetic.

All arithmetic is in float64; only the final weights are float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph import CallInputs, Graph, PrunableLayer, copy_weights, nodes, rebuild
from resrep_dist.graph.kinds import batch_norm_as_affine
from resrep_dist.graph.weighted import Weighted
from resrep_dist.layers.compactor import Compactor
from resrep_dist.timing.calls import GroupSegments

import numpy as np
import tensorflow as tf
from tensorflow import keras


def fold_arrays(
    kernel: np.ndarray, bias: np.ndarray, scale: np.ndarray, offset: np.ndarray, compactor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold y = Q (scale * (K x + bias) + offset) into one kernel and bias (section 3.2).

    Args:
        kernel: K, [height, width, C_in, D].
        bias: [D].
        scale: Factors of the batch norm in inference, [D].
        offset: What the batch norm adds, [D].
        compactor: The transpose of Q, [D, D_out].

    Returns:
        Kernel [height, width, C_in, D_out] and bias [D_out], float64.
    """
    arrays = (np.asarray(array, np.float64) for array in (kernel, bias, scale, offset, compactor))
    kernel, bias, scale, offset, compactor = arrays
    return (kernel * scale) @ compactor, (bias * scale + offset) @ compactor


def fold(
    kernel: np.ndarray, bias: np.ndarray, batch_norm: keras.layers.BatchNormalization | None, compactor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold a convolution, a batch norm and a compactor into one kernel and bias, as `fold_arrays`.

    Args:
        kernel: [height, width, C_in, D].
        bias: [D].
        batch_norm: The batch norm, as in inference. None if there is none.
        compactor: [D, D_out].

    Returns:
        Kernel [height, width, C_in, D_out] and bias [D_out], float64.
    """
    scale, offset = np.ones(len(bias)), np.zeros(len(bias))
    if batch_norm is not None:
        scale, offset = batch_norm_as_affine(batch_norm)
    return fold_arrays(kernel, bias, scale, offset, compactor)


def merge_convolution(
    convolution: keras.layers.Conv2D, compactor: Compactor, batch_norm: keras.layers.BatchNormalization | None = None
) -> keras.layers.Conv2D:
    """Return one convolution that computes what convolution, batch norm and compactor compute in a row (section 3.2).

    It has all output channels of the compactor; those of zero rows are zero.

    Args:
        convolution: A convolution without groups and activation.
        compactor: The compactor that follows.
        batch_norm: The batch norm between the two, as in inference. None if there is none.

    Raises:
        ModelError: If the convolution has groups or an activation.
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
    """Spread values per channel of each group over the channels of a tensor.

    Args:
        of_groups: For each group bool [width].
        segments: Channels of the tensor.
        elsewhere: Value for channels that are not prunable.

    Returns:
        bool [C].
    """
    parts = [np.full(width, elsewhere) if group is None else of_groups[group] for group, width in segments]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def width_behind_compactor(model: keras.Model, graph: Graph, layer: PrunableLayer) -> dict[str, int]:
    """Return the change of a layer's configuration that gives it as many output channels as its compactor has.

    Args:
        model: The model with compactors.
        graph: Its graph.
        layer: The layer before the compactor.
    """
    kind = graph.channels[layer.name].kind
    assert isinstance(kind, Weighted)
    return {kind.width_key: int(model.get_layer(layer.compactor).kernel.shape[-1])}


def fold_model(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    """Return the plain model, without compactors, in which no output depends on a dead channel.

    Each layer before a compactor is folded with its batch norm and its compactor. Each layer that receives constants
    from dead channels has their effect in its bias, and zeros for these channels in its kernel.

    Args:
        model: The model with compactors, shrunken or not; it is not changed.
        graph: Its graph, at the widths of its compactors.
        dead: For each group bool [width], True for dead channels.
    """
    constants = dead_constants(model, graph, dead)
    compacted = {layer.name: layer for layer in graph.layers}
    widths = {layer.name: width_behind_compactor(model, graph, layer) for layer in graph.layers}
    skipped = {layer.compactor for layer in graph.layers} | {layer.batch_norm for layer in graph.layers}

    def without_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if layer.name in skipped:
            return inputs.args[0]
        if layer.name in compacted or layer.name in constants:
            clone = type(layer).from_config(
                {**clone.get_config(), **_folded_options(clone), **widths.get(layer.name, {})}
            )
        return clone(*inputs.args, **inputs.kwargs)

    plain = rebuild(model, without_compactor)
    changed = compacted.keys() | constants.keys()
    copy_weights(model, plain, skip=changed)
    for name in changed:
        kind = graph.channels[name].kind
        assert isinstance(kind, Weighted)
        kernels, bias = _without_dead_inputs(model.get_layer(name), graph, dead, constants.get(name))
        if name in compacted:
            layer = compacted[name]
            batch_norm = model.get_layer(layer.batch_norm) if layer.batch_norm else None
            kernels[-1], bias = fold(kernels[-1], bias, batch_norm, model.get_layer(layer.compactor).matrix())
        plain.get_layer(name).set_weights([*kind.stored(kernels), bias])
    return plain


def _folded_options(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the options of a folded layer, whose weights are others than those that were constrained in training."""
    lost = ("kernel_constraint", "depthwise_constraint", "pointwise_constraint", "bias_constraint")
    config = layer.get_config()
    return {"use_bias": True, **{key: None for key in (*lost, "activity_regularizer") if key in config}}


def _without_dead_inputs(
    layer: keras.layers.Layer, graph: Graph, dead: Sequence[np.ndarray], constants: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return kernels and bias of a layer with the effect of the constants of its dead inputs, [C_in], in its bias."""
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
    """Compute the constants that dead channels hold where layers receive them.

    Args:
        model: The model with compactors.
        graph: Its graph, at the widths of its compactors.
        dead: For each group bool [width], True for dead channels.

    Returns:
        For each layer that receives constants other than zero, by name, float64 [C_in] with zeros for the channels
        that are alive.
    """
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
        if len(node.flat_output_ids) > 1:
            # Of a layer of unknown effect, which no dead channel reaches.
            values |= {str(id(t)): np.zeros(t.shape[-1] or 0) for t in tf.nest.flatten(node.outputs)}
        else:
            values[node.flat_output_ids[0]] = output
    return found
