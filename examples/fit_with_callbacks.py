"""Prune in Keras' own `compile` and `fit`, with callbacks.

    python examples/fit_with_callbacks.py [FOLDER]

The program trains a small network on scikit-learn's digits with plain Keras, inserts compactors and fits again with
`ResRepOptimizer`. Three callbacks choose the masks, write checkpoints and write curves for TensorBoard; FOLDER gets
the latter two (default: a temporary folder, deleted at the end). The same command with the same FOLDER resumes. At the
end the compactors are merged. It prints the accuracy before and after, the widths and the difference of the outputs.

Takes about half a minute on 2 CPU cores.
"""

import sys
import tempfile
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow import keras

BATCH_SIZE = 64
STEPS_PER_EPOCH = 22
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def load_data() -> tuple[tf.data.Dataset, np.ndarray, np.ndarray]:
    """Training batches without end, and 360 images and labels for validation."""
    digits = load_digits()
    images, labels = (digits.images[..., np.newaxis] / 16).astype(np.float32), digits.target
    is_validation = np.arange(len(labels)) % 5 == 0
    training = tf.data.Dataset.from_tensor_slices((images[~is_validation], labels[~is_validation]))
    batches = training.shuffle(2000, seed=0).repeat().batch(BATCH_SIZE)
    return batches, images[is_validation], labels[is_validation]


def small_network() -> keras.Model:
    """Three convolutions; the model returns logits."""
    layers = keras.layers
    x = inputs = keras.Input([8, 8, 1])
    for index, (width, strides) in enumerate(((16, 1), (32, 2), (32, 2))):
        x = layers.Conv2D(width, 3, strides, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def prune(
    model: keras.Model,
    batches: tf.data.Dataset,
    validation: tuple[np.ndarray, np.ndarray],
    folder: Path,
    cluster: resrep_dist.Cluster,
) -> tuple[keras.Model, resrep_dist.Graph]:
    """Fit with compactors until the masked channels are dead."""
    graph = resrep_dist.trace(model)
    pruned = resrep_dist.insert_compactors(model, graph)
    num_epochs = 24
    rate = keras.optimizers.schedules.CosineDecay(0.05, num_epochs * STEPS_PER_EPOCH)
    compactors = [pruned.get_layer(layer.compactor) for layer in graph.layers]
    optimizer = resrep_dist.ResRepOptimizer(rate, compactors, lasso_strength=0.01, cluster=cluster)
    pruned.compile(optimizer, LOSS, metrics=["accuracy"])

    choice = resrep_dist.PruneConfig(target_macs_fraction=0.5, mask_interval_steps=10, channels_per_update=8)
    masks = resrep_dist.ChannelMasks(graph, choice, first_step=20, last_step=250, cluster=cluster)
    checkpoints = resrep_dist.Checkpoints(folder / "checkpoints", masks, interval_steps=5 * STEPS_PER_EPOCH)
    curves = resrep_dist.PruningCurves(folder / "tensorboard", masks, interval_steps=20)
    pruned.fit(
        batches, epochs=num_epochs, steps_per_epoch=STEPS_PER_EPOCH, validation_data=validation, verbose=0,
        initial_epoch=checkpoints.saved_step() // STEPS_PER_EPOCH,  # 0 in a new folder
        callbacks=[masks, checkpoints, curves],  # in this order
    )  # fmt: skip
    return pruned, graph


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent."""
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def main(folder: Path) -> None:
    """Train, prune, merge, compare."""
    cluster = resrep_dist.Cluster()  # before the first model: it chooses this rank's GPU
    keras.utils.set_random_seed(0)
    batches, images, labels = load_data()
    model = small_network()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS)
    model.fit(batches, epochs=8, steps_per_epoch=STEPS_PER_EPOCH, verbose=0)
    print(f"trained: {accuracy(model, images, labels):.2f} %")

    pruned, graph = prune(model, batches, (images, labels), folder, cluster)
    slim, certificate = resrep_dist.merge(pruned, graph, images)
    print(f"pruned and merged: {accuracy(slim, images, labels):.2f} %")
    for name, channels in certificate.channels.items():
        print(f"{name}: {channels['kept']} of {channels['original']} channels")
    print(f"largest difference of the outputs: {certificate.max_relative_difference:.1e} of the largest output")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
