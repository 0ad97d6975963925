"""The ResNets for ImageNet, v1.5: the 3x3 convolution of a bottleneck has the stride, as in torchvision."""

from resrep_dist.models.building_blocks import batch_norm, convolution, relu

import tensorflow as tf
from tensorflow import keras

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def imagenet_resnet(depth: int, image_size: int, num_classes: int) -> keras.Model:
    """Build a ResNet for ImageNet (He et al., 2016, table 1).

    Args:
        depth: Number of layers: 18, 34, 50, 101 or 152.
        image_size: Height and width of the RGB images, pixels.
        num_classes: Number of logits.
    """
    block = _bottleneck if depth >= 50 else _basic_block
    expansion = 4 if depth >= 50 else 1
    inputs = keras.Input([image_size, image_size, 3], name="images")
    x = relu(batch_norm(convolution(inputs, 64, 7, 2, name="stem"), "stem_bn"), "stem_relu")
    # Behind a ReLU a border of zeros gives the same maxima as torchvision's minus infinity.
    x = keras.layers.ZeroPadding2D(1, name="pool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool")(x)
    for stage, num_blocks in enumerate(_BLOCKS[depth], start=1):
        width = 64 * 2 ** (stage - 1)
        for index in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            name = f"stage{stage}_block{index}"
            shortcut = x
            if stride > 1 or x.shape[-1] != width * expansion:
                shortcut = convolution(x, width * expansion, 1, stride, name=f"{name}_projection")
                shortcut = batch_norm(shortcut, f"{name}_projection_bn")
            x = keras.layers.Add(name=f"{name}_add")([block(x, width, stride, name), shortcut])
            x = relu(x, f"{name}_relu")
    x = keras.layers.GlobalAveragePooling2D(name="global_pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name=f"resnet{depth}")


def _basic_block(x: tf.Tensor, width: int, stride: int, name: str) -> tf.Tensor:
    x = relu(batch_norm(convolution(x, width, 3, stride, name=f"{name}_conv1"), f"{name}_bn1"), f"{name}_relu1")
    return batch_norm(convolution(x, width, 3, name=f"{name}_conv2"), f"{name}_bn2")


def _bottleneck(x: tf.Tensor, width: int, stride: int, name: str) -> tf.Tensor:
    x = relu(batch_norm(convolution(x, width, 1, name=f"{name}_conv1"), f"{name}_bn1"), f"{name}_relu1")
    x = relu(batch_norm(convolution(x, width, 3, stride, name=f"{name}_conv2"), f"{name}_bn2"), f"{name}_relu2")
    return batch_norm(convolution(x, 4 * width, 1, name=f"{name}_conv3"), f"{name}_bn3")
