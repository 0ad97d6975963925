"""A ResNet for CIFAR with any number of channels in each layer, from the arrays of its weights."""

from collections.abc import Mapping

from resrep_dist.models.building_blocks import batch_norm, convolution, relu

import numpy as np
from tensorflow import keras


def arrays_of(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights of each layer as `<layer>/<index>`."""
    return {f"{layer.name}/{index}": array for layer in model.layers for index, array in enumerate(layer.get_weights())}


def resnet_of(arrays: Mapping[str, np.ndarray], original: keras.Model) -> keras.Model:
    """The network of these weights, whose layers have the names of those of `original`, a `cifar_resnet`."""

    def normalized(x, name, stride=1):
        kernel = arrays[f"{name}/0"]
        x = convolution(x, kernel.shape[-1], kernel.shape[0], stride, name=name)
        return batch_norm(x, name.replace("_conv", "_bn") if "_conv" in name else f"{name}_bn")

    x = inputs = keras.Input(original.input_shape[1:], name="images")
    x = relu(normalized(x, "stem"), "stem_relu")
    for add in (layer.name for layer in original.layers if layer.name.endswith("_add")):
        name, shortcut = add.removesuffix("_add"), x
        stride = 2 if f"{name}_projection/0" in arrays else 1
        if stride > 1:
            shortcut = normalized(x, f"{name}_projection", stride)
        x = relu(normalized(x, f"{name}_conv1", stride), f"{name}_relu1")
        x = relu(keras.layers.Add(name=add)([normalized(x, f"{name}_conv2"), shortcut]), f"{name}_relu2")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(arrays["logits/1"].shape[0], name="logits")(x), name=original.name)
    for layer in (layer for layer in model.layers if layer.weights):
        layer.set_weights([arrays[f"{layer.name}/{index}"] for index in range(len(layer.weights))])
    return model
