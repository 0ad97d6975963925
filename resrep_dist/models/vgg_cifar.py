"""VGG-16 for CIFAR: the 13 convolutions of VGG-16 with batch norm, and one dense layer."""

from resrep_dist.models.building_blocks import batch_norm, convolution, relu

from tensorflow import keras

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def cifar_vgg16(image_size: int, num_classes: int) -> keras.Model:
    """Build VGG-16 for CIFAR.

    Args:
        image_size: Height and width of the RGB images, pixels; at least 32, since five poolings halve them.
        num_classes: Number of logits.
    """
    inputs = x = keras.Input([image_size, image_size, 3], name="images")
    for stage, widths in enumerate(_STAGES, start=1):
        for index, width in enumerate(widths, start=1):
            name = f"stage{stage}_conv{index}"
            x = relu(batch_norm(convolution(x, width, 3, name=name), f"{name}_bn"), f"{name}_relu")
        x = keras.layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    x = keras.layers.GlobalAveragePooling2D(name="global_pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name="vgg16_cifar")
