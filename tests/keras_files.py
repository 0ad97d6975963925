"""Networks of stock layers for either Keras; as a script it writes them, and hostile ones, with Keras 3.

Usage: python keras_files.py FOLDER, in a process that has not chosen Keras 2.
"""

import sys
from pathlib import Path

import numpy as np


def branched(keras):
    """Most of the layers that a file may hold: padding, depthwise, separable, shared, merging, gating."""
    layers = keras.layers
    inputs = keras.Input((16, 16, 3), name="images")
    x = layers.ZeroPadding2D(1)(layers.Rescaling(0.5, offset=0.1)(inputs))
    x = layers.Conv2D(8, 3, 2, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-4))(x)
    x = layers.BatchNormalization(name="norm", epsilon=1e-5, trainable=False)(x)
    x = layers.LeakyReLU()(layers.ReLU(6.0)(x))
    y = layers.Activation("swish")(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    y = layers.PReLU(shared_axes=[1, 2])(layers.SeparableConv2D(8, 3, padding="same", name="separable")(y))
    shared = layers.Conv2D(8, 1, activation="relu6", name="shared")
    x = layers.Add()([shared(x), shared(y), x])
    x = layers.Concatenate()([x, layers.LayerNormalization()(y)])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(16, 1, activation="sigmoid")(gate)
    x = layers.SpatialDropout2D(0.1)(layers.Multiply()([x, gate]))
    x = layers.Conv2DTranspose(4, 2, 2, name="transposed")(layers.MaxPooling2D(2)(x))
    x = layers.ELU()(layers.Conv2D(8, 3, groups=2, name="grouped")(x))
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, layers.Dense(10, dtype="float32", name="logits")(layers.Dropout(0.2)(x)))


def sequential(keras):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.Activation("relu"), layers.Flatten(), layers.Dense(10)]
    )


def operations(keras):
    """Arithmetic and `keras.ops`, which Keras 3 writes as operations, and layers of keras.applications' ConvNeXt."""
    from keras.src.applications.convnext import LayerScale, StochasticDepth

    layers, ops = keras.layers, keras.ops
    inputs = keras.Input((16, 16, 3), name="images")
    x = inputs / 127.5 - 1.0
    x = (1.0 - x * np.array([1.0, 2.0, 3.0], "float32")) * 0.5
    x = ops.relu(layers.Conv2D(8, 3, name="conv")(x)) + 0.1
    y = layers.Dense(16, name="wide")(layers.GroupNormalization(2)(x))
    y = layers.Dense(8, name="narrow")(ops.gelu(y, approximate=False))
    x = x + StochasticDepth(0.1)(LayerScale(0.5, 8)(y))
    x = ops.concatenate([ops.silu(x), -ops.leaky_relu(x - layers.Conv2D(8, 1)(x), negative_slope=0.3)], axis=-1)
    x = ops.maximum(x, ops.tanh(x) * layers.Conv2D(16, 1)(x))
    x = layers.CenterCrop(8, 6)(layers.Resizing(10, 8)(ops.maximum(x, 0.0)))
    x = ops.mean(x, axis=[1, 2]) + ops.max(x, axis=(2, 1))
    return keras.Model(inputs, ops.softmax(layers.Dense(10, name="logits")(x)))


NETWORKS = {"branched": branched, "sequential": sequential}
OF_KERAS_3 = {"operations": operations}


def images():
    return np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)


def write(keras, network, folder, name):
    """Save with random weights in each format, and the outputs beside."""
    random = np.random.default_rng(1)
    model = (NETWORKS | OF_KERAS_3)[network](keras)
    for weight in model.weights:
        value = 0.2 * random.normal(size=weight.shape)
        weight.assign(1.0 + np.abs(value) if "variance" in getattr(weight, "path", weight.name) else value)
    model.save(folder / f"{name}.keras")
    model.save(folder / f"{name}.h5")
    model.save_weights(folder / f"{name}.weights.h5")
    np.save(folder / f"{name}.npy", model.predict(images(), verbose=0))


def write_hostile(keras, folder):
    """Models with code in them. Whoever runs it leaves a file `ran` behind."""
    ran = str(folder / "ran")

    @keras.saving.register_keras_serializable("stranger")
    class Planted(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    def planted(x):
        open(ran, "w").close()
        return x

    inputs = keras.Input((16, 16, 3))
    for name, layer in (
        ("lambda", keras.layers.Lambda(planted, output_shape=(16, 16, 3), name="plant")),
        ("custom", Planted(name="plant")),
    ):
        model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(layer(inputs))))
        for ending in ("keras", "h5"):
            model.save(folder / f"{name}.{ending}")
    inner = sequential(keras)
    keras.Model(inputs, keras.layers.Softmax()(inner(inputs))).save(folder / "nested.keras")
    Path(ran).unlink(missing_ok=True)


if __name__ == "__main__":
    import keras

    target = Path(sys.argv[1])
    for each in NETWORKS | OF_KERAS_3:
        write(keras, each, target, f"keras3_{each}")
    write_hostile(keras, target)
