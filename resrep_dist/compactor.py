"""The compactor: a 1x1 convolution behind a convolution and its batch norm, initially the identity."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.graph import Graph, copy_weights, nodes, rebuild

import numpy as np
import tensorflow as tf
from tensorflow import keras


@keras.utils.register_keras_serializable("resrep_dist")
class GroupLasso(keras.regularizers.Regularizer):
    """strength * sum_j ||Q_j|| of a kernel [..., D_in, D_out], whose gradient is the penalty of section 3.3.

    At a zero row the gradient is 0. For compactors trained by another optimizer than ResRepOptimizer, which has
    the penalty already, and adds it after the average over the ranks.
    """

    def __init__(self, strength: float = 1e-4) -> None:
        self.strength = strength

    def __call__(self, kernel: tf.Tensor) -> tf.Tensor:
        squares = tf.reduce_sum(tf.square(kernel), axis=-2)
        # The root has no gradient at 0; a constant in its place has the gradient 0.
        norms = tf.where(squares > 0, tf.sqrt(tf.where(squares > 0, squares, 1.0)), 0.0)
        return tf.constant(self.strength, kernel.dtype) * tf.reduce_sum(norms)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength}


@keras.utils.register_keras_serializable("resrep_dist")
class Compactor(keras.layers.Layer):
    """y = Q x at every pixel, or on vectors (section 3.2), channels last, without bias.

    Weights: `kernel` [1, 1, D_in / groups, D_out], the transpose of the paper's Q, initially the identity; `mask`
    [D_out], not trained: 1 where the objective trains the row, 0 where it is left to decay.

    Args:
        channels: D_out; by default D_in.
        groups: of the grouped convolution before it: Q is block-diagonal, and only its blocks are there.
    """

    def __init__(
        self, channels: int | None = None, groups: int = 1, kernel_regularizer: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.groups = channels, groups
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: tf.TensorShape) -> None:
        width = int(input_shape[-1])
        channels = self.channels or width
        self.kernel = self.add_weight(
            "kernel",
            [1, 1, width // self.groups, channels],
            initializer=self._identity,
            regularizer=self.kernel_regularizer,
        )
        self.mask = self.add_weight("mask", [channels], initializer="ones", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.groups > 1:
            # TensorFlow has no gradient of a grouped convolution on a CPU.
            divided = tf.reshape(inputs, [*tf.unstack(tf.shape(inputs))[:-1], self.groups, -1])
            blocks = tf.reshape(self.kernel, [self.kernel.shape[2], self.groups, -1])
            outputs = tf.einsum("...gi,igo->...go", divided, blocks)
            return tf.reshape(outputs, [*tf.unstack(tf.shape(inputs))[:-1], self.kernel.shape[-1]])
        if inputs.shape.rank != 4:
            return tf.matmul(inputs, self.kernel[0, 0])
        return tf.nn.conv2d(inputs, self.kernel, strides=1, padding="VALID")

    def matrix(self) -> np.ndarray:
        """Q transposed, whole, [D_in, D_out]."""
        blocks = np.split(self.kernel.numpy()[0, 0], self.groups, axis=-1)
        matrix = np.zeros([self.groups * len(blocks[0]), self.kernel.shape[-1]], blocks[0].dtype)
        for index, block in enumerate(blocks):
            rows, columns = block.shape
            matrix[index * rows : (index + 1) * rows, index * columns : (index + 1) * columns] = block
        return matrix

    def get_config(self) -> dict[str, Any]:
        regularizer = keras.regularizers.serialize(self.kernel_regularizer) if self.kernel_regularizer else None
        own = {"channels": self.channels, "groups": self.groups, "kernel_regularizer": regularizer}
        return {**super().get_config(), **own}

    def _identity(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        block = tf.eye(shape[2], shape[3] // self.groups, dtype=dtype)
        return tf.tile(block, [1, self.groups])[tf.newaxis, tf.newaxis]


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


def training_macs(model: keras.Model, graph: Graph, widths: Sequence[int], is_refolded: bool = False) -> int:
    """Multiply-adds of a forward pass of one image through a model with compactors, and through these.

    Args:
        graph: of the original model.
        widths: channels that each group has behind its compactors, those of the model or fewer.
        is_refolded: what stands before a compactor is as narrow; otherwise it keeps the width of the model.
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


def kill_channels(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> None:
    """Mask these channels of every group, bool [width], and make their rows zero, as the end of a run does."""
    for group, channels in zip(graph.groups, dead, strict=True):
        for layer in group.layers:
            compactor = model.get_layer(layer.compactor)
            compactor.mask.assign(tf.cast(np.tile(~channels, group.num_parts), compactor.mask.dtype))
            compactor.kernel.assign(compactor.kernel * compactor.mask)


def is_dead(norms: Sequence[np.ndarray], mask: np.ndarray, num_parts: int, dead_row_norm: float) -> np.ndarray:
    """Bool [width]: the masked channels of a group whose rows all have at most this norm.

    Args:
        norms: row norms of each of the group's layers, [D_out].
        mask: that of the group's compactors, [D_out].
    """
    highest = np.max([np.max(in_parts(of_layer, num_parts), axis=0) for of_layer in norms], axis=0)
    return (in_parts(mask, num_parts)[0] == 0) & (highest <= dead_row_norm)


def in_parts(values: np.ndarray, num_parts: int) -> np.ndarray:
    """What a compactor's channels have, [D_out], by part of its group (see `Group`), [num_parts, width]."""
    return np.reshape(values, [num_parts, -1])
