"""The scores of each task, against other programs, and summed over batches and ranks."""

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.data.source import Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError, DataError
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.losses import make_loss
from resrep_dist.training.step import TrainStep
from tests.networks import label_network, pixel_network
from tests.unit.training.test_evaluation import OneOf

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score, f1_score
from tensorflow import keras

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(60, 8, 8, 3)).astype(np.float32)
# The last class never occurs; many pixels have no class.
LABELS = np.concatenate([RANDOM.uniform(size=(60, 3)) < [0.1, 0.4, 0.7], np.zeros([60, 1])], axis=1).astype(np.int64)
MASKS = RANDOM.integers(-1, 3, size=(60, 8, 8))


def of_values(shape):
    """A model whose outputs are those of a fixed function of the image's first pixels."""
    inputs = keras.Input([8, 8, 3])
    if len(shape) == 3:
        return keras.Model(inputs, keras.layers.Conv2D(shape[-1], 3, padding="same", name="conv")(inputs))
    return keras.Model(inputs, keras.layers.Dense(shape[0])(keras.layers.Flatten()(inputs)))


def test_labels_are_scored_as_scikit_learn_does_from_logits_and_from_probabilities():
    keras.utils.set_random_seed(0)
    model, source = of_values([4]), Source(IMAGES, LABELS, 4)
    logits = model.predict(IMAGES, verbose=0)
    names = ["binary_accuracy", "F1Score"]
    evaluator = Evaluator(model, names, "multilabel")
    values = evaluator.evaluate(source, 7)
    expected = average_precision_score(LABELS[:, :3], logits[:, :3], average="macro")
    # Logits in the same bin of 1/32 count as equal.
    assert values["mean_average_precision"] == pytest.approx(100 * expected, abs=0.5)
    assert values["f1"] == pytest.approx(100 * f1_score(LABELS, logits > 0, average="micro"), abs=1e-9)
    assert values["binary_accuracy"] == pytest.approx(np.mean((logits > 0) == LABELS), abs=1e-6)
    expected = f1_score(LABELS, logits > 0, average="macro", zero_division=0)
    assert values["F1Score"] == pytest.approx(expected, abs=1e-6)
    assert evaluator.guessing == pytest.approx(100 * LABELS[:, :3].mean())
    sigmoid = keras.Model(model.inputs, keras.layers.Activation("sigmoid")(model.outputs[0]))
    of_sigmoid = Evaluator(sigmoid, names, "multilabel").evaluate(source, 60)
    assert of_sigmoid == pytest.approx(values, abs=0.5)


def test_pixels_are_scored_as_keras_does_and_those_without_a_class_do_not_count():
    keras.utils.set_random_seed(0)
    model, source = of_values([8, 8, 3]), Source(IMAGES, MASKS, 3)
    found, has_class = model.predict(IMAGES, verbose=0).argmax(-1), MASKS >= 0
    evaluator = Evaluator(model, ["sparse_categorical_accuracy"], "segmentation")
    values = evaluator.evaluate(source, 7)
    metric = keras.metrics.MeanIoU(3)
    metric.update_state(MASKS[has_class], found[has_class])
    assert values["mean_iou"] == pytest.approx(100 * float(metric.result()), rel=1e-6)
    accuracy = np.mean(MASKS[has_class] == found[has_class])
    assert values["pixel_accuracy"] == pytest.approx(100 * accuracy)
    assert values["sparse_categorical_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    counts = np.bincount(MASKS[has_class])
    assert evaluator.guessing == pytest.approx(100 * counts.max() / counts.sum() / 3)


@pytest.mark.parametrize(("task", "labels"), [("multilabel", LABELS), ("segmentation", MASKS)])
def test_ranks_that_share_the_samples_get_what_one_process_gets(task, labels):
    num_classes = 4 if task == "multilabel" else 3
    model = label_network(8, 4) if task == "multilabel" else pixel_network(8, 3)
    source = Source(IMAGES, labels, num_classes)
    alone = Evaluator(model, task=task).evaluate(source, 10)
    answers = {}
    for rank in range(7):  # the last one has the sum of all
        shared = Evaluator(model, task=task).evaluate(source, 10, OneOf(rank, 7, answers))
    assert shared == alone


@pytest.mark.parametrize(("task", "labels"), [("multilabel", LABELS), ("segmentation", MASKS)])
def test_parts_of_a_batch_have_the_loss_the_score_and_the_gradients_of_the_whole(task, labels):
    results = []
    for num_parts in (1, 3):
        keras.utils.set_random_seed(0)
        # Batch norm by the statistics of a part is another function.
        model = label_network(8, 4) if task == "multilabel" else pixel_network(8, 3)
        for layer in model.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        config = TrainingConfig(gradient_accumulation_steps=num_parts)
        step = TrainStep(Cluster(), config, 30, task=task)
        step.follow(TrainState(model, ResRepOptimizer(0.1, decay=0.0), shared=step.variables))
        step.run(tf.constant(IMAGES[:30]), tf.constant(labels[:30], tf.int64))
        results.append((step.read_metrics(), model.get_weights()))
    (whole, weights), (parts, of_parts) = results
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole["label_accuracy" if task == "multilabel" else "pixel_accuracy"] > 0
    for expected, received in zip(weights, of_parts, strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-6)


def test_the_loss_of_masks_is_the_mean_over_their_pixels_with_a_class():
    model = of_values([8, 8, 3])
    masks = np.array(MASKS[:2])
    masks[1] = -1
    outputs = model(IMAGES[:2])
    losses = make_loss(TrainingConfig(), model, "segmentation")(tf.constant(masks), outputs).numpy()
    has_class = masks[0] >= 0
    log_p = np.log(tf.nn.softmax(outputs)[0].numpy()[has_class])
    assert losses[0] == pytest.approx(-np.mean(log_p[np.arange(has_class.sum()), masks[0][has_class]]), rel=1e-5)
    assert losses[1] == 0


def test_losses_and_labels_of_another_task_are_refused_by_name():
    model = of_values([4])
    with pytest.raises(ConfigError, match="task is multilabel; set training.loss: binary_crossentropy"):
        make_loss(TrainingConfig(loss="categorical_crossentropy"), model, "multilabel")
    with pytest.raises(ConfigError, match=r"training\.class_weights: they are for one class per image"):
        make_loss(TrainingConfig(class_weights=(1.0, 2.0, 1.0, 1.0)), model, "multilabel")
    smooth = make_loss(TrainingConfig(label_smoothing=0.2), model, "multilabel")
    expected = keras.losses.binary_crossentropy([[0.9, 0.1, 0.1, 0.1]], [[1.0, 2.0, 0.0, -1.0]], from_logits=True)
    received = smooth(tf.constant([[1, 0, 0, 0]], tf.int64), tf.constant([[1.0, 2.0, 0.0, -1.0]]))
    np.testing.assert_allclose(received, expected, rtol=1e-6)
    for labels, message in (
        (LABELS + 1, "expected labels from 0 to 1, received 1 to 2"),
        (LABELS[:, :2], r"labels of shape \[60, 2\], expected \[N, 4\]"),
        (MASKS + 5, "expected labels from 0 to 3, received 4 to 7"),
        (np.zeros([60, 8, 8, 1], np.int64), r"labels of shape \[60, 8, 8, 1\], expected \[N\]"),
    ):
        with pytest.raises(DataError, match=message):
            Source(IMAGES, labels, 4)


@pytest.mark.parametrize("augmentation", ["shift", "pad_crop_flip"])
def test_masks_move_with_their_images_and_what_is_padded_has_no_class(augmentation):
    images = np.repeat(np.arange(1, 5)[:, np.newaxis, np.newaxis] * np.ones([4, 16, 16]), 1, axis=0)
    images[:, ::3, ::5] += 5
    masks = images.astype(np.int64)
    source = Source(np.repeat(images[..., np.newaxis], 3, axis=-1).astype(np.float32), masks, 20)
    indices = tf.constant([[0, 1, 2, 3]] * 3, tf.int64)
    places = tf.data.Dataset.from_tensor_slices((indices, indices + 4 * tf.range(3, dtype=tf.int64)[:, tf.newaxis]))
    moved = 0
    for pixels, of_pixels in source.load(places, 4, augmentation, 1):
        expected = np.where(pixels[..., 0] == 0, -1, pixels[..., 0])
        np.testing.assert_array_equal(of_pixels, expected)
        moved += int((of_pixels.numpy() == -1).sum())
    assert moved > 0
