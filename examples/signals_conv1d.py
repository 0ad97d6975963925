"""Prune a network of one-dimensional convolutions in Keras' own `fit`.

    python examples/signals_conv1d.py [FOLDER]

The program makes signals of two channels, such as a sensor's: sines, squares, saw teeth and chirps of random frequency
and phase in noise. It trains a network of Conv1D layers to tell them apart, with Dropout and poolings between them.
Then it prunes half of the multiply-adds away, merges the compactors, and writes `model.h5`, `model.tflite` and
`model.onnx` to FOLDER (default: a temporary folder, deleted at the end).

It prints top-1 and multiply-adds before and after, and how closely the outputs of the slim model and of each file agree
with the trained model's. Takes half a minute on 2 CPU cores.
"""

import sys
import tempfile
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2

import numpy as np
import tensorflow as tf
from tensorflow import keras

LENGTH, NUM_CLASSES = 128, 4  # sine, square, saw tooth, chirp
BATCH_SIZE, STEPS_PER_EPOCH = 64, 20
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def record(num_signals: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Signals [N, length, 2], the second channel later than the first one, and their classes."""
    random = np.random.default_rng(seed)
    times = np.arange(LENGTH) / LENGTH
    signals = random.normal(0, 0.5, [num_signals, LENGTH, 2])
    classes = random.integers(0, NUM_CLASSES, num_signals)
    for signal, number in zip(signals, classes, strict=True):
        frequency, rise = random.uniform(4, 12), random.uniform(8, 16) if number == 3 else 0.0
        for channel, phase in enumerate(random.uniform(0, 1) + np.array([0, 0.25])):
            turns = frequency * times + rise * times**2 + phase
            wave = 2 * (turns % 1) - 1 if number == 2 else np.sin(2 * np.pi * turns)
            signal[:, channel] += np.sign(wave) if number == 1 else wave
    return signals.astype(np.float32), classes


def network() -> keras.Model:
    """Four convolutions; the model returns logits."""
    layers = keras.layers
    x = inputs = keras.Input([LENGTH, 2], name="signals")
    for width, strides in ((24, 1), (32, 2), (48, 2), (48, 1)):
        x = layers.Conv1D(width, 7, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(layers.MaxPooling1D(2)(x)))
    return keras.Model(inputs, layers.Dense(NUM_CLASSES, name="classes")(x), name="network")


def prune(model: keras.Model, batches: tf.data.Dataset) -> tuple[keras.Model, resrep_dist.Graph]:
    """Fit with compactors until the masked channels are dead."""
    cluster = resrep_dist.Cluster()
    graph = resrep_dist.trace(model)
    pruned = resrep_dist.insert_compactors(model, graph)
    num_epochs = 16
    rate = keras.optimizers.schedules.CosineDecay(0.05, num_epochs * STEPS_PER_EPOCH)
    compactors = [pruned.get_layer(layer.compactor) for layer in graph.layers]
    optimizer = resrep_dist.ResRepOptimizer(rate, compactors, lasso_strength=0.02, cluster=cluster)
    pruned.compile(optimizer, LOSS)
    choice = resrep_dist.PruneConfig(target_macs_fraction=0.5)
    masks = resrep_dist.ChannelMasks(graph, choice, first_step=20, last_step=120, cluster=cluster)
    pruned.fit(batches, epochs=num_epochs, steps_per_epoch=STEPS_PER_EPOCH, verbose=0, callbacks=[masks])
    return pruned, graph


def top1(model: keras.Model, signals: np.ndarray, classes: np.ndarray) -> float:
    """Signals whose class is found, percent."""
    return 100 * float(np.mean(model.predict(signals, verbose=0).argmax(-1) == classes))


def save_and_compare(slim: keras.Model, pruned: keras.Model, signals: np.ndarray, folder: Path) -> None:
    """Write the slim model for Keras, TFLite and ONNX, and compare the outputs of each file."""
    path = folder / "model.h5"
    resrep_dist.save_model(slim, path)
    keras3 = resrep_dist.compare_in_keras3(pruned, path, signals)
    if keras3:
        print(f"{path.name} in Keras {keras3.version}: {keras3.max_relative_difference:.1e} of the largest output")
    for format_name in ("tflite", "onnx"):
        exported = resrep_dist.export_model(slim, format_name, folder, signals, tolerance=1e-4)
        print(f"{exported.path.name}: {exported.max_relative_difference:.1e} of the largest output")


def main(folder: Path) -> None:
    """Train, prune, merge, save, compare."""
    keras.utils.set_random_seed(0)
    signals, classes = record(512, seed=1)
    training = tf.data.Dataset.from_tensor_slices(record(2048, seed=0))
    batches = training.shuffle(2048, seed=0).repeat().batch(BATCH_SIZE)
    model = network()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS)
    model.fit(batches, epochs=10, steps_per_epoch=STEPS_PER_EPOCH, verbose=0)

    pruned, graph = prune(model, batches)
    slim, certificate = resrep_dist.merge(pruned, graph, signals)
    of_slim = resrep_dist.trace(slim)
    print(f"{'':8}{'top-1':>12}{'multiply-adds':>16}")
    for name, measured, traced in (("before", model, graph), ("after", slim, of_slim)):
        print(f"{name:8}{top1(measured, signals, classes):>10.2f} %{traced.macs.total(traced.widths):>16,}")
    for name, difference in certificate.relative_differences.items():
        print(f"largest difference of {name}: {difference:.1e} of the largest output")
    save_and_compare(slim, pruned, signals, folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
