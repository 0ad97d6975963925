"""The layers that all models are built of, with the choices of torchvision, for which hyperparameters are published."""

import tensorflow as tf
from tensorflow import keras


def convolution(x: tf.Tensor, width: int, kernel_size: int, stride: int = 1, *, name: str) -> tf.Tensor:
    """Apply a convolution without bias, padded equally on all sides.

    TensorFlow's padding `same` is one pixel wider at the bottom and right for some strides, so a strided convolution
    gets a layer of zero padding. The initializer is He et al. (2015) with the fan out, as in torchvision.

    Args:
        x: [N, height, width, channels].
        width: Number of output channels.
        kernel_size: Height and width of the kernel, odd, pixels.
        stride: Vertical and horizontal stride, pixels.
        name: Name of the convolution; that of the padding is `<name>_pad`.
    """
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
    """Apply a depthwise convolution without bias, padded equally on all sides as in `convolution`.

    Args:
        x: [N, height, width, channels].
        kernel_size: Height and width of the kernel, odd, pixels.
        stride: Vertical and horizontal stride, pixels.
        name: Name of the convolution; that of the padding is `<name>_pad`.
    """
    padding = "same"
    if stride > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    # Keras' default divides by the number of channels, but each output depends on one of them.
    initializer = keras.initializers.RandomNormal(stddev=(2.0 / kernel_size**2) ** 0.5)
    layer = keras.layers.DepthwiseConv2D(
        kernel_size, stride, padding, use_bias=False, depthwise_initializer=initializer, name=name
    )
    return layer(x)


def batch_norm(x: tf.Tensor, name: str) -> tf.Tensor:
    """Apply batch norm with PyTorch's constants: epsilon 1e-5, moving averages with momentum 0.9."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def relu(x: tf.Tensor, name: str) -> tf.Tensor:
    """Apply a ReLU in a layer of its own."""
    return keras.layers.ReLU(name=name)(x)
