"""The scores of each task, from counts that are summed over batches and ranks: every sample once, in any order."""

import abc

from resrep_dist.data.mixing import Labels, MixedLabels, mean_of_labels
from resrep_dist.models.softmax import ends_in_probabilities

import numpy as np
import tensorflow as tf
from tensorflow import keras

# A model's outputs are sorted into bins of 1/32 between the logits -16 and 16, which is 1 - 1e-7 as a probability.
_MAX_LOGIT, _NUM_BINS = 16.0, 1024


class Scores(abc.ABC):
    """Counts what the scores of a task need.

    Attributes:
        num_counts: Number of counts.
    """

    num_counts: int

    @abc.abstractmethod
    def count(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Count a batch.

        Args:
            labels: int64 [B, ...].
            outputs: Outputs of the model, float32 [B, ..., num_classes].

        Returns:
            int64 [num_counts].
        """

    @abc.abstractmethod
    def values(self, counts: np.ndarray, num_samples: int) -> dict[str, float]:
        """Return the scores, percent; the first one is that of the task.

        Args:
            counts: The sum of the counts, int64 [num_counts].
            num_samples: Number of samples that were counted.
        """

    @abc.abstractmethod
    def guessing(self, counts: np.ndarray) -> float:
        """Return the score of a model that guesses, percent.

        Args:
            counts: As in `values`.
        """


def scores_of(task: str, model: keras.Model) -> Scores:
    """Return what counts the scores of a task.

    Args:
        task: A key of `config.tasks.TASKS`.
        model: The model whose outputs are counted.
    """
    num_classes = int(model.output_shape[-1])
    if task == "multilabel":
        return _OfLabels(num_classes, ends_in_probabilities(model))
    return _OfPixels(num_classes) if task == "segmentation" else _OfClasses(num_classes)


def correct_shares(model: keras.Model, labels: Labels, outputs: tf.Tensor) -> tf.Tensor:
    """Return which share of each sample's labels the outputs have, for the training's own score.

    Args:
        model: The model.
        labels: int64 [B, ...], or those of mixed images.
        outputs: Outputs of the model, [B, ..., num_classes].

    Returns:
        [B], of the type of the outputs: 0 or 1 for one class per image, otherwise the share of classes or pixels.
    """
    if isinstance(labels, MixedLabels):
        return mean_of_labels(lambda each: correct_shares(model, each, outputs), labels)
    if labels.shape.rank == 2:
        limit = 0.5 if ends_in_probabilities(model) else 0.0
        is_right = tf.cast(outputs >= limit, labels.dtype) == labels
        return tf.reduce_mean(tf.cast(is_right, outputs.dtype), -1)
    is_right = tf.cast(tf.argmax(outputs, -1, labels.dtype) == labels, outputs.dtype)
    if labels.shape.rank == 1:
        return is_right
    num_pixels = tf.reduce_sum(tf.cast(labels >= 0, outputs.dtype), [1, 2])
    return tf.reduce_sum(is_right, [1, 2]) / tf.maximum(num_pixels, 1.0)


class _OfClasses(Scores):
    """Top-1 and, for more than five classes, top-5."""

    def __init__(self, num_classes: int) -> None:
        # With five classes or fewer every sample would be correct, so there is no top-5.
        self._num_best = {"top1": 1, "top5": 5} if num_classes > 5 else {"top1": 1}
        self.num_counts, self._num_classes = len(self._num_best), num_classes

    def count(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        # If outputs are equal, the class with the lower number wins, as in argmax.
        best = tf.cast(tf.math.top_k(outputs, max(self._num_best.values())).indices, labels.dtype)
        is_hit = tf.cast(best == labels[:, tf.newaxis], tf.int64)
        return tf.stack([tf.reduce_sum(is_hit[:, :num_best]) for num_best in self._num_best.values()])

    def values(self, counts: np.ndarray, num_samples: int) -> dict[str, float]:
        return {name: 100.0 * int(count) / num_samples for name, count in zip(self._num_best, counts, strict=True)}

    def guessing(self, counts: np.ndarray) -> float:
        return 100.0 / self._num_classes


class _OfLabels(Scores):
    """Mean average precision over the classes that occur, and F1 over all labels at a probability of 0.5.

    Both come from a histogram of the logits of each class, for images that have the label and those that have not.
    Outputs in the same bin count as equal, as in scikit-learn's `average_precision_score`.
    """

    def __init__(self, num_classes: int, has_probabilities: bool) -> None:
        self._num_classes, self._has_probabilities = num_classes, has_probabilities
        self.num_counts = num_classes * 2 * _NUM_BINS

    def count(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        if self._has_probabilities:
            outputs = tf.clip_by_value(outputs, 1e-7, 1.0 - 1e-7)
            outputs = tf.math.log(outputs) - tf.math.log1p(-outputs)
        # Rounded down, so that the upper half has the logits from 0 on, which are probabilities from 0.5 on.
        bins = tf.cast(tf.floor((outputs + _MAX_LOGIT) * (_NUM_BINS / (2 * _MAX_LOGIT))), tf.int64)
        rows = 2 * tf.range(self._num_classes, dtype=tf.int64) + labels
        return _histogram(rows * _NUM_BINS + tf.clip_by_value(bins, 0, _NUM_BINS - 1), self.num_counts)

    def values(self, counts: np.ndarray, num_samples: int) -> dict[str, float]:
        without, having = self._from_high_to_low(counts)
        num_found = np.cumsum(having + without, axis=1)
        precision = np.cumsum(having, axis=1) / np.maximum(num_found, 1)
        num_having = having.sum(axis=1)
        occurs = num_having > 0
        averages = (precision * having).sum(axis=1)[occurs] / num_having[occurs]
        half = _NUM_BINS // 2
        right, found = having[:, :half].sum(), (having + without)[:, :half].sum()
        return {
            "mean_average_precision": 100.0 * float(averages.mean()) if occurs.any() else 0.0,
            "f1": 200.0 * float(right) / max(float(found + num_having.sum()), 1.0),
        }

    def guessing(self, counts: np.ndarray) -> float:
        # In a random order the precision is the share of the images that have the label.
        without, having = self._from_high_to_low(counts)
        shares = having.sum(axis=1) / np.maximum((having + without).sum(axis=1), 1)
        return 100.0 * float(shares[shares > 0].mean()) if (shares > 0).any() else 0.0

    def _from_high_to_low(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by_label = counts.reshape(self._num_classes, 2, _NUM_BINS)[:, :, ::-1]
        return by_label[:, 0], by_label[:, 1]


class _OfPixels(Scores):
    """Intersection over union, averaged over the classes that occur or are found, and the share of right pixels.

    Pixels with a negative label have no class and do not count.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes, self.num_counts = num_classes, num_classes**2

    def count(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        found = tf.argmax(outputs, -1, labels.dtype)
        return _histogram(tf.boolean_mask(labels * self._num_classes + found, labels >= 0), self.num_counts)

    def values(self, counts: np.ndarray, num_samples: int) -> dict[str, float]:
        confusion = counts.reshape(self._num_classes, self._num_classes)
        right, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        ratios = right[union > 0] / union[union > 0]
        return {
            "mean_iou": 100.0 * float(ratios.mean()) if len(ratios) else 0.0,
            "pixel_accuracy": 100.0 * float(right.sum()) / max(float(confusion.sum()), 1.0),
        }

    def guessing(self, counts: np.ndarray) -> float:
        # The most frequent class everywhere.
        of_classes = counts.reshape(self._num_classes, self._num_classes).sum(axis=1)
        return 100.0 * float(of_classes.max()) / max(float(of_classes.sum()), 1.0) / max(int((of_classes > 0).sum()), 1)


def _histogram(values: tf.Tensor, length: int) -> tf.Tensor:
    # TensorFlow has no deterministic one for GPUs.
    with tf.device("CPU:0"):
        return tf.math.bincount(tf.reshape(values, [-1]), minlength=length, maxlength=length, dtype=tf.int64)
