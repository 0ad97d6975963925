"""The ResNets for CIFAR: depth 6n + 2, three stages of 16, 32 and 64 channels (He et al., 2016, section 4.2).

The shortcut between two stages is a 1x1 convolution with batch norm, as in the code of the ResRep paper.
"""

from resrep_dist.models.building_blocks import batch_norm, convolution, relu

import tensorflow as tf
from tensorflow import keras


def cifar_resnet(depth: int, image_size: int, num_classes: int) -> keras.Model:
    """Build a ResNet for CIFAR.

    Args:
        depth: Number of layers: 20, 32, 56 or 110.
        image_size: Height and width of the RGB images, pixels.
        num_classes: Number of logits.
    """
    num_blocks = (depth - 2) // 6
    inputs = keras.Input([image_size, image_size, 3], name="images")
    x = relu(batch_norm(convolution(inputs, 16, 3, name="stem"), "stem_bn"), "stem_relu")
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, width, stride, f"stage{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name=f"resnet{depth}")


def _basic_block(x: tf.Tensor, width: int, stride: int, name: str) -> tf.Tensor:
    shortcut = x
    if stride > 1:
        shortcut = convolution(x, width, 1, stride, name=f"{name}_projection")
        shortcut = batch_norm(shortcut, f"{name}_projection_bn")
    x = relu(batch_norm(convolution(x, width, 3, stride, name=f"{name}_conv1"), f"{name}_bn1"), f"{name}_relu1")
    x = batch_norm(convolution(x, width, 3, name=f"{name}_conv2"), f"{name}_bn2")
    return relu(keras.layers.Add(name=f"{name}_add")([x, shortcut]), f"{name}_relu2")
