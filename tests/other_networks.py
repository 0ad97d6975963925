"""Small networks that are no classifiers of images: signals, volumes, a U-Net, two inputs and two heads."""

from tensorflow import keras

layers = keras.layers


def signals():
    x = inputs = keras.Input([32, 2])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(8, 5, padding="causal", name="a")(x)))
    x = layers.SpatialDropout1D(0.1)(layers.MaxPooling1D(2)(layers.ZeroPadding1D(1)(x)))
    x = layers.Conv1D(12, 3, padding="same", dilation_rate=2, activation="relu", name="b")(x)
    x = layers.AveragePooling1D(2)(layers.UpSampling1D(2)(layers.Cropping1D(1)(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(6, 3, 2, use_bias=False, name="c")(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def mobile_signals():
    """Depthwise, separable and transposed convolutions of signals."""
    x = inputs = keras.Input([32, 2])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(8, 5, name="a")(x)))
    x = layers.BatchNormalization()(layers.DepthwiseConv1D(3, 2, use_bias=False)(x))
    x = layers.Conv1D(10, 1, activation="relu", name="pointwise")(x)
    x = layers.SeparableConv1D(12, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1DTranspose(6, 3, 2, name="up")(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling1D()(x)))


def finer_volumes():
    """A transposed convolution of volumes."""
    x = inputs = keras.Input([4, 4, 4, 1])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv3D(6, 3, 2, "same", name="a")(x)))
    x = layers.Conv3DTranspose(5, 3, 2, "same", activation="relu", name="up")(x)
    return keras.Model(inputs, layers.Conv3D(2, 1)(x))


def volumes():
    x = inputs = keras.Input([8, 8, 8, 1])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv3D(6, 3, padding="same", name="a")(x)))
    x = layers.SpatialDropout3D(0.1)(layers.MaxPooling3D(2)(layers.ZeroPadding3D(1)(x)))
    x = layers.Conv3D(8, 3, activation="relu", name="b")(layers.Cropping3D(1)(layers.UpSampling3D(2)(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.AveragePooling3D(2)(x))))


def unet():
    x = inputs = keras.Input([16, 16, 3])
    skips = []
    for depth, width in enumerate((6, 8)):
        x = layers.Conv2D(width, 3, padding="same", name=f"down{depth}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        skips.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="bottom")(x)
    for depth, width in ((1, 8), (0, 6)):
        x = layers.Conv2DTranspose(width, 3, 2, "same", name=f"up{depth}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x) if depth else x)
        x = layers.Concatenate()([x, skips[depth]])
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"wide{depth}")(x)
    x = layers.Conv2DTranspose(4, 2, 2, activation="relu", name="finer")(x)
    return keras.Model(inputs, layers.Conv2D(5, 1, name="map")(x))


def two_headed():
    """A trunk for images, a vector beside it, and two heads: scores of classes, and a map of boxes."""
    images, vector = keras.Input([16, 16, 3], name="images"), keras.Input([4], name="vector")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, 2, "same", name="stem")(images)))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="trunk")(x)
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), vector])
    classes = layers.Dense(5, activation="sigmoid", name="classes")(pooled)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(10, 3, padding="same", name="of_boxes")(x)))
    return keras.Model([images, vector], [classes, layers.Conv2D(4, 1, name="boxes")(x)])
