"""The compactor: a 1x1 convolution behind a convolution and its batch norm, initially the identity."""

from typing import Any

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
