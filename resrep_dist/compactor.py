"""The compactor: a 1x1 convolution behind a convolution and its batch norm, initially the identity."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.graph import Graph, copy_weights, rebuild

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

    Weights: `kernel` [1, 1, D_in, D_out], the transpose of the paper's Q, initially the identity; `mask`
    [D_out], not trained: 1 where the objective trains the row, 0 where it is left to decay.
    """

    def __init__(self, channels: int | None = None, kernel_regularizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: tf.TensorShape) -> None:
        width = int(input_shape[-1])
        channels = self.channels or width
        self.kernel = self.add_weight(
            "kernel",
            [1, 1, width, channels],
            initializer=lambda shape, dtype=None: tf.eye(*shape[2:], dtype=dtype)[tf.newaxis, tf.newaxis],
            regularizer=self.kernel_regularizer,
        )
        self.mask = self.add_weight("mask", [channels], initializer="ones", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if inputs.shape.rank != 4:
            return tf.matmul(inputs, self.kernel[0, 0])
        return tf.nn.conv2d(inputs, self.kernel, strides=1, padding="VALID")

    def get_config(self) -> dict[str, Any]:
        regularizer = keras.regularizers.serialize(self.kernel_regularizer) if self.kernel_regularizer else None
        return {**super().get_config(), "channels": self.channels, "kernel_regularizer": regularizer}


def insert_compactors(model: keras.Model, graph: Graph) -> keras.Model:
    """The same model, flat, with an identity compactor behind every prunable layer; equal outputs, own weights."""
    sites = {layer.site: layer.compactor for layer in graph.layers}

    def with_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: Any) -> Any:
        outputs = clone(*inputs.args, **inputs.kwargs)
        return Compactor(name=sites[clone.name])(outputs) if clone.name in sites else outputs

    pruned = rebuild(model, with_compactor)
    copy_weights(model, pruned)
    return pruned


def compactors_of(model: keras.Model, graph: Graph) -> list[Compactor]:
    """The model's compactors in the graph's order."""
    return [model.get_layer(layer.compactor) for layer in graph.layers]


def is_dead(compactors: Sequence[Compactor], dead_row_norm: float) -> np.ndarray:
    """Bool [D]: the masked channels of a group whose rows all have at most this norm."""
    norms = [np.linalg.norm(compactor.kernel.numpy()[0, 0], axis=0) for compactor in compactors]
    return (np.max(norms, axis=0) <= dead_row_norm) & (compactors[0].mask.numpy() == 0)
