"""Exact evaluation: each sample counts once, on several ranks or on one process."""

from collections.abc import Sequence

from resrep_dist.data.order import evaluation_batches
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.models.softmax import ends_in_probabilities
from resrep_dist.training.losses import make_metrics, update_metric

import tensorflow as tf
from tensorflow import keras


class Evaluator:
    """Accuracy and Keras metrics of one model, compiled once for all calls.

    Args:
        model: A model with logits or probabilities as output, [B, classes].
        metrics: Names of Keras metrics. They receive probabilities: those of the model, or a softmax of its logits.

    Raises:
        ConfigError: If a metric is unknown or cannot be used; see `make_metrics`.
    """

    def __init__(self, model: keras.Model, metrics: Sequence[str] = ()) -> None:
        self._model, self._names = model, list(metrics)
        self._metrics = make_metrics(metrics, model)
        # With five classes or fewer every sample would be correct, so there is no top-5.
        self._num_best = {"top1": 1, "top5": 5} if int(model.output_shape[-1]) > 5 else {"top1": 1}
        self._count_correct = tf.function(self._count, reduce_retracing=True)

    def evaluate(self, source: ImageSource, batch_size: int, cluster: Cluster | None = None) -> dict[str, float]:
        """Evaluate the model on all samples of a data source. A collective if a cluster is given.

        Args:
            source: The data.
            batch_size: Number of samples per batch on each rank.
            cluster: The ranks that share the samples; all receive the result. None to evaluate on this process alone.

        Returns:
            `top1` and, for more than five classes, `top5` in percent, and the value of each metric under its name.
        """
        for metric in self._metrics:
            metric.reset_state()
        rank, size = (cluster.rank, cluster.size) if cluster else (0, 1)
        correct = tf.zeros([len(self._num_best)], tf.int64)
        for images, labels in evaluation_batches(
            source, batch_size, rank, size, cluster.num_cores if cluster else None
        ):
            correct += self._count_correct(images, labels)
            if cluster:
                cluster.watchdog.beat()
        if cluster:
            (correct,) = cluster.sum([correct], "evaluation")
            self._sum_metrics(cluster)
        counts = dict(zip(self._num_best, correct.numpy(), strict=True))
        values = {name: 100.0 * int(count) / len(source) for name, count in counts.items()}
        return values | {name: float(m.result()) for name, m in zip(self._names, self._metrics, strict=True)}

    def top1(self, source: ImageSource, batch_size: int, cluster: Cluster | None = None) -> float:
        """Return the top-1 accuracy in percent; see `evaluate`.

        Args:
            source: The data.
            batch_size: Number of samples per batch on each rank.
            cluster: The ranks that share the samples; None for this process alone.
        """
        return self.evaluate(source, batch_size, cluster)["top1"]

    def _count(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(self._model(images, training=False), keras.backend.floatx())
        if self._metrics:
            probabilities = outputs if ends_in_probabilities(self._model) else tf.nn.softmax(outputs)
            for name, metric in zip(self._names, self._metrics, strict=True):
                update_metric(metric, name, labels, probabilities)
        # If outputs are equal, the class with the lower number wins, as in argmax.
        best = tf.cast(tf.math.top_k(outputs, max(self._num_best.values())).indices, labels.dtype)
        is_hit = tf.cast(best == labels[:, tf.newaxis], tf.int64)
        return tf.stack([tf.reduce_sum(is_hit[:, :num_best]) for num_best in self._num_best.values()])

    def _sum_metrics(self, cluster: Cluster) -> None:
        variables = [variable for metric in self._metrics for variable in metric.variables]
        if variables:
            for variable, value in zip(variables, cluster.sum(variables, "metrics"), strict=True):
                variable.assign(value)
