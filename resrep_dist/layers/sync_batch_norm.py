"""Batch norm with the statistics of the global batch."""

from typing import Any

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ModelError
from resrep_dist.layers.replacement import replace_layers

import tensorflow as tf
from tensorflow import keras


class SyncBatchNormalization(keras.layers.BatchNormalization):
    """Batch norm whose mean and variance in training are those of the samples of all ranks.

    One collective per layer in the forward pass and one in the backward pass, each of 2 D + 1 numbers for D channels.
    """

    cluster: Cluster | None = None
    """The ranks. None for plain batch norm."""

    def call(self, inputs: tf.Tensor, training: Any = None, mask: Any = None) -> tf.Tensor:
        """Normalize the inputs. A collective in training, unless `cluster` is None or the layer is frozen.

        Args:
            inputs: Tensor [B, ..., D], or with the channels on the axis `axis`.
            training: True to use the statistics of the batch and update the running ones.
            mask: As in Keras' layer; ignored where the statistics are those of all ranks.

        Returns:
            A tensor of the shape and type of the inputs.
        """
        if self.cluster is None or not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        channel_axis = self.axis[0] % inputs.shape.rank
        axes = [axis for axis in range(inputs.shape.rank) if axis != channel_axis]
        shape = [1] * inputs.shape.rank
        shape[channel_axis] = inputs.shape[channel_axis]
        x = tf.cast(inputs, self.moving_mean.dtype)
        # Sums of squares lose precision if the mean is large; sums of squares about the running mean do not.
        shift = tf.identity(self.moving_mean)
        centered = x - tf.reshape(shift, shape)
        count = tf.cast(tf.size(x) // shape[channel_axis], x.dtype)
        local = [tf.reduce_sum(centered, axes), tf.reduce_sum(tf.square(centered), axes), count]
        total, squares, count = self.cluster.sum(local, f"sync_{self.name}")
        mean = total / count
        variance = tf.maximum(squares / count - tf.square(mean), 0.0)
        self._update(mean + shift, variance, count)
        beta = tf.reshape(self.beta, shape) if self.center else None
        gamma = tf.reshape(self.gamma, shape) if self.scale else None
        outputs = tf.nn.batch_normalization(
            centered, tf.reshape(mean, shape), tf.reshape(variance, shape), beta, gamma, self.epsilon
        )
        return tf.cast(outputs, inputs.dtype)

    def _update(self, mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor) -> None:
        if self.fused:
            # As Keras' own layer does if it uses TensorFlow's fused operation.
            variance *= count / tf.maximum(count - 1.0, 1.0)
        for variable, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            variable.assign(variable * self.momentum + value * (1.0 - self.momentum))


AnyBatchNormalization = keras.layers.BatchNormalization.__base__
"""What all of Keras' batch norms are of, older ones too; it has no public name."""


def with_sync_batch_norm(model: keras.Model, cluster: Cluster) -> keras.Model:
    """Return the model with synchronized batch norm in place of the stock layer.

    Args:
        model: A functional model.
        cluster: The ranks over which the statistics are computed.

    Raises:
        ModelError: If the model has any other batch norm, such as a subclass, since it may compute something else.
    """

    def synchronized(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        if not isinstance(layer, AnyBatchNormalization):
            return None
        if type(layer) not in (keras.layers.BatchNormalization, SyncBatchNormalization):
            raise ModelError(
                f"layer {layer.name}: training.sync_batch_norm cannot synchronize a {type(layer).__module__}."
                f"{type(layer).__name__}, expected keras.layers.BatchNormalization; use that layer, or set "
                "training.sync_batch_norm: false"
            )
        new = SyncBatchNormalization.from_config(layer.get_config())
        new.cluster = cluster
        return new

    return replace_layers(model, synchronized)


def with_plain_batch_norm(model: keras.Model) -> keras.Model:
    """Return the model with stock batch norm in place of the synchronized one.

    Args:
        model: A functional model.

    Returns:
        A new model with the same weights; the model itself if it has no synchronized batch norm.
    """
    if not any(isinstance(layer, SyncBatchNormalization) for layer in model.layers):
        return model

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        is_sync = isinstance(layer, SyncBatchNormalization)
        return keras.layers.BatchNormalization.from_config(layer.get_config()) if is_sync else None

    return replace_layers(model, plain)


def copy_clusters(model: keras.Model, source: keras.Model) -> keras.Model:
    """Set the clusters of a model's synchronized batch norms to those of another model.

    A layer's configuration does not hold its cluster, so a rebuilt model has none.

    Args:
        model: The rebuilt model, changed in place.
        source: The model from which it was rebuilt.

    Returns:
        `model`.
    """
    for layer in model.layers:
        if isinstance(layer, SyncBatchNormalization):
            layer.cluster = source.get_layer(layer.name).cluster
    return model
