"""VGG-16 for small images: the 13 convolutions of Simonyan and Zisserman (2015) with batch norm, one dense layer."""

from resrep_dist.models.building_blocks import batch_norm, convolution, relu

from tensorflow import keras

# Convolutions of each stage, and their width.
_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def vgg16(image_size: int, num_classes: int) -> keras.Model:
    """VGG-16 on square RGB images of `image_size` pixels, 32 and more."""
    x = inputs = keras.Input([image_size, image_size, 3], name="images")
    for stage, (num_convolutions, width) in enumerate(_STAGES, start=1):
        for number in range(1, num_convolutions + 1):
            name = f"stage{stage}_conv{number}"
            x = relu(batch_norm(convolution(x, width, 3, name=name), f"{name}_bn"), f"{name}_relu")
        x = keras.layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    x = keras.layers.GlobalAveragePooling2D(name="global_pool")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name="vgg16")
