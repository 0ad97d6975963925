"""What all models are made of: the choices of torchvision, so that published hyper-parameters fit."""

import tensorflow as tf
from tensorflow import keras


def convolution(x: tf.Tensor, width: int, kernel_size: int, stride: int = 1, *, name: str) -> tf.Tensor:
    """A convolution without bias, padded alike on all sides (TensorFlow's `same` pads a strided one unevenly)."""
    padding = "same"
    if stride > 1 and kernel_size > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    layer = keras.layers.Conv2D(
        width,
        kernel_size,
        stride,
        padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
    )
    return layer(x)


def depthwise_convolution(x: tf.Tensor, kernel_size: int, stride: int = 1, *, name: str) -> tf.Tensor:
    """A depthwise convolution without bias, padded alike on all sides."""
    padding = "same"
    if stride > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    # Glorot would divide by the number of channels; each of them has one input and one output.
    initializer = keras.initializers.RandomNormal(stddev=(2.0 / kernel_size**2) ** 0.5)
    layer = keras.layers.DepthwiseConv2D(
        kernel_size, stride, padding, use_bias=False, depthwise_initializer=initializer, name=name
    )
    return layer(x)


def batch_norm(x: tf.Tensor, name: str) -> tf.Tensor:
    """Batch norm with PyTorch's constants: epsilon 1e-5, running average 0.9."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def relu(x: tf.Tensor, name: str) -> tf.Tensor:
    """ReLU in a layer of its own."""
    return keras.layers.ReLU(name=name)(x)
