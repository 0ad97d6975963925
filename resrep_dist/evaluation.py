"""Exact evaluation: every sample once, over all ranks or on this process alone."""

from resrep_dist.cluster import Cluster
from resrep_dist.data.order import evaluation_batches
from resrep_dist.data.source import Source

import tensorflow as tf
from tensorflow import keras


class Evaluator:
    """Top-1 accuracy of one model, compiled once however often it is called."""

    def __init__(self, model: keras.Model) -> None:
        def num_correct(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            predicted = tf.argmax(model(images, training=False), -1, labels.dtype)
            return tf.reduce_sum(tf.cast(predicted == labels, tf.int64))

        self._num_correct = tf.function(num_correct, reduce_retracing=True)

    def top1(self, source: Source, batch_size: int, cluster: Cluster | None = None) -> float:
        """Percent; with a cluster the ranks share the work and all get the result."""
        rank, size = (cluster.rank, cluster.size) if cluster else (0, 1)
        correct = tf.zeros([], tf.int64)
        for images, labels in evaluation_batches(source, batch_size, rank, size):
            correct += self._num_correct(images, labels)
        if cluster:
            (correct,) = cluster.sum([correct], "evaluation")
        return 100.0 * int(correct) / len(source)
