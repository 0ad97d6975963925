"""Prune a U-Net, which finds the class of every pixel, in Keras' own `fit`.

    python examples/unet_segmentation.py [FOLDER]

The program draws plain disks and striped squares on noise, with the class of each pixel as the mask, and trains a
U-Net on them: convolutions, transposed convolutions, and skip connections by Concatenate. Then it prunes half of the
multiply-adds away, merges the compactors, and writes `model.h5`, `model.tflite` and `model.onnx` to FOLDER (default: a
temporary folder, deleted at the end).

It prints the mean IoU (intersection over union, averaged over the classes) and the multiply-adds before and after, and
how closely the outputs of the slim model and of each file agree with the trained model's. Takes half a minute on 2
CPU cores.
"""

import sys
import tempfile
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2

import numpy as np
import tensorflow as tf
from tensorflow import keras

SIZE, NUM_CLASSES = 24, 3  # background, disk, square
BATCH_SIZE, STEPS_PER_EPOCH = 32, 20
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def draw(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, size, size, 3] of disks and squares in random colors, and the class of each pixel."""
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.3, [num_images, SIZE, SIZE, 3]).astype(np.float32)
    masks = np.zeros([num_images, SIZE, SIZE], np.int64)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for image, mask in zip(images, masks, strict=True):
        for number in (1, 2):
            row, column = random.uniform(5, SIZE - 5, 2)
            distance = (np.hypot, np.maximum)[number - 1](np.abs(rows - row), np.abs(columns - column))
            is_inside = distance < random.uniform(4, 6)
            stripes = 1.0 if number == 1 else 1.0 - 2.0 * (rows // 2 % 2)
            image[is_inside] = (
                image[is_inside] / 2
                + (random.uniform(0.5, 1.5, 3) * np.ones_like(image))[is_inside]
                * (np.broadcast_to(stripes, rows.shape)[is_inside, np.newaxis])
            )
            mask[is_inside] = number
    return images, masks


def unet() -> keras.Model:
    """Two steps down, two up; the model returns logits for every pixel."""
    layers = keras.layers

    def block(x: tf.Tensor, width: int) -> tf.Tensor:
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    x = inputs = keras.Input([SIZE, SIZE, 3], name="images")
    skips = []
    for width in (16, 24):
        skips.append(block(x, width))
        x = layers.MaxPooling2D()(skips[-1])
    x = block(x, 32)
    for width, skip in ((24, skips[1]), (16, skips[0])):
        x = layers.Conv2DTranspose(width, 2, 2, activation="relu")(x)
        x = block(layers.Concatenate()([skip, x]), width)
    return keras.Model(inputs, layers.Conv2D(NUM_CLASSES, 1, name="classes")(x), name="unet")


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


def mean_iou(model: keras.Model, images: np.ndarray, masks: np.ndarray) -> float:
    """Intersection over union of each class, averaged over the classes, percent."""
    metric = keras.metrics.MeanIoU(NUM_CLASSES)
    metric.update_state(masks, model.predict(images, verbose=0).argmax(-1))
    return 100 * float(metric.result())


def save_and_compare(slim: keras.Model, pruned: keras.Model, images: np.ndarray, folder: Path) -> None:
    """Write the slim model for Keras, TFLite and ONNX, and compare the outputs of each file."""
    path = folder / "model.h5"
    resrep_dist.save_model(slim, path)
    keras3 = resrep_dist.compare_in_keras3(pruned, path, images)
    if keras3:
        print(f"{path.name} in Keras {keras3.version}: {keras3.max_relative_difference:.1e} of the largest output")
    for format_name in ("tflite", "onnx"):
        exported = resrep_dist.export_model(slim, format_name, folder, images, tolerance=1e-4)
        print(f"{exported.path.name}: {exported.max_relative_difference:.1e} of the largest output")


def main(folder: Path) -> None:
    """Train, prune, merge, save, compare."""
    keras.utils.set_random_seed(0)
    images, masks = draw(128, seed=1)
    training = tf.data.Dataset.from_tensor_slices(draw(512, seed=0))
    batches = training.shuffle(512, seed=0).repeat().batch(BATCH_SIZE)
    model = unet()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS)
    model.fit(batches, epochs=10, steps_per_epoch=STEPS_PER_EPOCH, verbose=0)

    pruned, graph = prune(model, batches)
    slim, certificate = resrep_dist.merge(pruned, graph, images)
    of_slim = resrep_dist.trace(slim)
    print(f"{'':8}{'mean IoU':>12}{'multiply-adds':>16}")
    for name, measured, traced in (("before", model, graph), ("after", slim, of_slim)):
        print(f"{name:8}{mean_iou(measured, images, masks):>10.2f} %{traced.macs.total(traced.widths):>16,}")
    for name, difference in certificate.relative_differences.items():
        print(f"largest difference of {name}: {difference:.1e} of the largest output")
    save_and_compare(slim, pruned, images, folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
