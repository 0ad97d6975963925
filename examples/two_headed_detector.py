"""Prune a detector with two heads, one for classes and one for boxes, in Keras' own `fit`.

    python examples/two_headed_detector.py [FOLDER]

The program draws plain disks and striped squares on noise, with their boxes, and trains a small detector of the kind
of YOLO on them. Each cell of a grid of 6 x 6 answers for the object whose center lies in it: one head says its class or
that there is none, the other one its box. Then the program prunes half of the multiply-adds away, merges the
compactors, and writes `model.h5`, `model.tflite` and `model.onnx` to FOLDER (default: a temporary folder, deleted at
the end).

It prints the F1 score (an object is found if class and box are right, the box with an IoU of at least 0.5) and the
multiply-adds of both heads together before and after, and how closely each output of the slim model and of each file
agrees with the trained model's. Takes half a minute on 2 CPU cores.
"""

import sys
import tempfile
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2

import numpy as np
import tensorflow as tf
from tensorflow import keras

SIZE, NUM_CELLS, NUM_CLASSES = 48, 6, 3  # nothing, disk, square
CELL_SIZE = SIZE // NUM_CELLS
BATCH_SIZE, STEPS_PER_EPOCH = 32, 20


def box_loss(truth: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Absolute error of the boxes, in cells that have an object: those whose box is not 0 wide."""
    has_object = tf.cast(truth[..., 2:3] > 0, boxes.dtype)
    return tf.reduce_sum(has_object * tf.abs(truth - boxes), -1)


LOSS = {"classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "boxes": box_loss}


def draw(num_images: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images [N, size, size, 3], and the truth for each head.

    Classes are [N, cells, cells]. Boxes are [N, cells, cells, 4]: the center from the middle of the cell, height and
    width, all in cells.
    """
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.3, [num_images, SIZE, SIZE, 3]).astype(np.float32)
    classes = np.zeros([num_images, NUM_CELLS, NUM_CELLS], np.int64)
    boxes = np.zeros([num_images, NUM_CELLS, NUM_CELLS, 4], np.float32)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for image, of_cells, boxes_of_cells in zip(images, classes, boxes, strict=True):
        # One object in the left half, one in the right half.
        for left in (0, SIZE // 2):
            number, height, width = random.integers(1, 3), *random.uniform(4, 10, 2)
            center = np.array([random.uniform(10, SIZE - 10), left + random.uniform(10, SIZE // 2 - 10)])
            distance = (np.hypot, np.maximum)[number - 1]
            is_inside = distance(np.abs(rows - center[0]) / height, np.abs(columns - center[1]) / width) < 1
            stripes = np.where(number == 1, 1.0, 1.0 - 2.0 * (rows // 2 % 2))
            image[is_inside] += stripes[is_inside, np.newaxis] * random.uniform(0.5, 1.5, 3)
            row, column = cell = tuple((center // CELL_SIZE).astype(int))
            of_cells[cell] = number
            middle = CELL_SIZE * (np.array([row, column]) + 0.5)
            boxes_of_cells[cell] = np.array([*(center - middle), 2 * height, 2 * width]) / CELL_SIZE
    return images, {"classes": classes, "boxes": boxes}


def detector() -> keras.Model:
    """A trunk of four convolutions with a branch of one more for each head."""
    layers = keras.layers

    def block(x: tf.Tensor, width: int, strides: int = 1) -> tf.Tensor:
        x = layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    x = inputs = keras.Input([SIZE, SIZE, 3], name="images")
    for width, strides in ((16, 2), (32, 2), (32, 1), (48, 2)):
        x = block(x, width, strides)
    classes = layers.Conv2D(NUM_CLASSES, 1, name="classes")(block(x, 32))
    boxes = layers.Conv2D(4, 1, name="boxes")(block(x, 32))
    return keras.Model(inputs, {"classes": classes, "boxes": boxes}, name="detector")


def prune(model: keras.Model, batches: tf.data.Dataset) -> tuple[keras.Model, resrep_dist.Graph]:
    """Fit with compactors until the masked channels are dead."""
    cluster = resrep_dist.Cluster()
    graph = resrep_dist.trace(model)
    pruned = resrep_dist.insert_compactors(model, graph)
    num_epochs = 18
    rate = keras.optimizers.schedules.CosineDecay(0.03, num_epochs * STEPS_PER_EPOCH)
    compactors = [pruned.get_layer(layer.compactor) for layer in graph.layers]
    optimizer = resrep_dist.ResRepOptimizer(rate, compactors, lasso_strength=0.02, cluster=cluster)
    pruned.compile(optimizer, LOSS)
    choice = resrep_dist.PruneConfig(target_macs_fraction=0.5)
    masks = resrep_dist.ChannelMasks(graph, choice, first_step=20, last_step=130, cluster=cluster)
    pruned.fit(batches, epochs=num_epochs, steps_per_epoch=STEPS_PER_EPOCH, verbose=0, callbacks=[masks])
    return pruned, graph


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes of the same cells, [..., 4] -> [...]."""
    sides = [np.maximum(boxes[..., 2:], 0) for boxes in (one, other)]
    low = np.maximum(one[..., :2] - sides[0] / 2, other[..., :2] - sides[1] / 2)
    high = np.minimum(one[..., :2] + sides[0] / 2, other[..., :2] + sides[1] / 2)
    intersection = np.maximum(high - low, 0).prod(-1)
    return intersection / np.maximum(sides[0].prod(-1) + sides[1].prod(-1) - intersection, 1e-9)


def f1_score(model: keras.Model, images: np.ndarray, truth: dict[str, np.ndarray]) -> float:
    """Harmonic mean of precision and recall, percent."""
    found = model.predict(images, verbose=0)
    classes = found["classes"].argmax(-1)
    is_right = (classes > 0) & (classes == truth["classes"]) & (overlap(found["boxes"], truth["boxes"]) >= 0.5)
    return 200 * is_right.sum() / ((classes > 0).sum() + (truth["classes"] > 0).sum())


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
    images, truth = draw(256, seed=1)
    training = tf.data.Dataset.from_tensor_slices(draw(1024, seed=0))
    batches = training.shuffle(1024, seed=0).repeat().batch(BATCH_SIZE)
    model = detector()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS)
    model.fit(batches, epochs=18, steps_per_epoch=STEPS_PER_EPOCH, verbose=0)

    pruned, graph = prune(model, batches)
    slim, certificate = resrep_dist.merge(pruned, graph, images)
    of_slim = resrep_dist.trace(slim)
    print(f"{'':8}{'F1':>12}{'multiply-adds':>16}")
    for name, measured, traced in (("before", model, graph), ("after", slim, of_slim)):
        print(f"{name:8}{f1_score(measured, images, truth):>10.2f} %{traced.macs.total(traced.widths):>16,}")
    for name, difference in certificate.relative_differences.items():
        print(f"largest difference of {name}: {difference:.1e} of the largest output")
    save_and_compare(slim, pruned, images, folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
