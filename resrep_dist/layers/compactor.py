"""The compactor: a 1x1 convolution that follows a convolution and its batch norm, initially the identity.

ResRep (Ding et al., ICCV 2021) prunes only the compactor. Each row of its matrix Q makes one output channel. A penalty
takes some rows to zero, so that their channels are always zero, while the convolution before it is trained as without
pruning, and the other rows may mix all its channels. Then convolution, batch norm and compactor are one linear map,
which `merging/folding.py` writes into one convolution with as many channels as rows are left (section 3.2).

TensorFlow's kernels are [..., D_in, D_out], the transpose of Q: a row of Q is a column of `Compactor.kernel`.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras


@keras.utils.register_keras_serializable("resrep_dist")
class GroupLasso(keras.regularizers.Regularizer):
    """The penalty strength * sum_j ||Q_j|| of section 3.3, for a kernel [..., D_in, D_out] whose columns are the Q_j.

    For compactors that are trained by another optimizer than ResRepOptimizer, which adds the gradient of the penalty
    itself, after the average over the ranks. The gradient of a zero row is 0.

    Args:
        strength: The paper's lambda.
    """

    def __init__(self, strength: float = 1e-4) -> None:
        self.strength = strength

    def __call__(self, kernel: tf.Tensor) -> tf.Tensor:
        squares = tf.reduce_sum(tf.square(kernel), axis=-2)
        # The gradient of the root is infinite at 0. The outer `where` alone would multiply it by 0, which is NaN.
        norms = tf.where(squares > 0, tf.sqrt(tf.where(squares > 0, squares, 1.0)), 0.0)
        return tf.constant(self.strength, kernel.dtype) * tf.reduce_sum(norms)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength}


# In `.h5` files Keras writes objects inside of others without their package.
keras.utils.get_custom_objects()["GroupLasso"] = GroupLasso


@keras.utils.register_keras_serializable("resrep_dist")
class Compactor(keras.layers.Layer):
    """y = Q x at every pixel of an image, or for vectors (section 3.2), channels last, without bias.

    Behind a grouped convolution Q is block-diagonal, so that the compactor can be folded into it; the kernel holds only
    the blocks, side by side.

    Attributes:
        kernel: [1, 1, D_in / groups, D_out], the transpose of Q, initially the identity.
        mask: [D_out], not trained. 1 if the loss trains the row of Q, 0 if only the penalty does (section 3.3).

    Args:
        channels: D_out. None for D_in.
        groups: Number of groups of the convolution before it.
        kernel_regularizer: As in Keras' layers, such as a `GroupLasso`. None for no regularizer.
        **kwargs: As in every Keras layer: name, dtype and so on.
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
        """Return the transpose of Q with the zeros outside its blocks, [D_in, D_out]."""
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
