"""MobileNet-v1 (Howard et al., 2017, table 1): 13 depthwise convolutions, each followed by a 1x1 convolution."""

from resrep_dist.models.building_blocks import batch_norm, convolution, depthwise_convolution, relu

from tensorflow import keras

# (output channels, stride) of each block.
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet_v1(image_size: int, num_classes: int, width_multiplier: float = 1.0) -> keras.Model:
    """Build MobileNet-v1 with batch norm and ReLU behind every convolution.

    Args:
        image_size: Height and width of the RGB images, pixels.
        num_classes: Number of logits.
        width_multiplier: Factor of the number of channels of every layer (section 3.3 of Howard et al.).
    """
    inputs = keras.Input([image_size, image_size, 3], name="images")
    x = relu(batch_norm(convolution(inputs, int(32 * width_multiplier), 3, 2, name="stem"), "stem_bn"), "stem_relu")
    for index, (width, stride) in enumerate(_BLOCKS, start=1):
        name = f"block{index}"
        x = depthwise_convolution(x, 3, stride, name=f"{name}_depthwise")
        x = relu(batch_norm(x, f"{name}_bn1"), f"{name}_relu1")
        x = convolution(x, int(width * width_multiplier), 1, name=f"{name}_pointwise")
        x = relu(batch_norm(x, f"{name}_bn2"), f"{name}_relu2")
    x = keras.layers.GlobalAveragePooling2D(name="global_pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name="mobilenet_v1")
