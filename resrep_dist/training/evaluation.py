"""Exact evaluation: each sample counts once, on several ranks or on one process."""

from collections.abc import Sequence

from resrep_dist.config.tasks import Score, score_of
from resrep_dist.data.order import evaluation_batches
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.models.softmax import ends_in_probabilities
from resrep_dist.training.losses import make_metrics, update_metric
from resrep_dist.training.scores import scores_of

import tensorflow as tf
from tensorflow import keras


class Evaluator:
    """The scores of a task and Keras metrics of one model, compiled once for all calls.

    Attributes:
        guessing: Score of a model that guesses on the set that was evaluated last, percent.

    Args:
        model: A model with logits or probabilities as output, [B, ..., classes].
        metrics: Names of Keras metrics. They receive probabilities: those of the model, or a softmax of its logits;
            with `multilabel` a sigmoid.
        task: What the labels say; see `Config.task`.

    Raises:
        ConfigError: If a metric is unknown or cannot be used; see `make_metrics`.
    """

    def __init__(self, model: keras.Model, metrics: Sequence[str] = (), task: str = "classification") -> None:
        self._model, self._names, self._task = model, list(metrics), task
        self._metrics = make_metrics(metrics, model, task)
        self._scores = scores_of(task, model)
        self._count_batch = tf.function(self._count, reduce_retracing=True)
        self.guessing = 0.0

    def evaluate(self, source: ImageSource, batch_size: int, cluster: Cluster | None = None) -> dict[str, float]:
        """Evaluate the model on all samples of a data source. A collective if a cluster is given.

        Args:
            source: The data.
            batch_size: Number of samples per batch on each rank.
            cluster: The ranks that share the samples; all receive the result. None to evaluate on this process alone.

        Returns:
            The scores in percent, and the value of each metric under its name. Scores are `top1` and, for more than
            five classes, `top5`; with `multilabel` `mean_average_precision` and `f1`; with `segmentation` `mean_iou`
            and `pixel_accuracy`.
        """
        for metric in self._metrics:
            metric.reset_state()
        rank, size = (cluster.rank, cluster.size) if cluster else (0, 1)
        counts = tf.zeros([self._scores.num_counts], tf.int64)
        for images, labels in evaluation_batches(
            source, batch_size, rank, size, cluster.num_cores if cluster else None
        ):
            counts += self._count_batch(images, labels)
            if cluster:
                cluster.watchdog.beat()
        if cluster:
            (counts,) = cluster.sum([counts], "evaluation")
            self._sum_metrics(cluster)
        values = self._scores.values(counts.numpy(), len(source))
        self.guessing = self._scores.guessing(counts.numpy())
        return values | {name: float(m.result()) for name, m in zip(self._names, self._metrics, strict=True)}

    def score(self, source: ImageSource, batch_size: int, cluster: Cluster | None = None) -> Score:
        """Return the score of the task; see `evaluate`.

        Args:
            source: The data.
            batch_size: Number of samples per batch on each rank.
            cluster: The ranks that share the samples; None for this process alone.
        """
        return score_of(self.evaluate(source, batch_size, cluster))

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
            squash = tf.sigmoid if self._task == "multilabel" else tf.nn.softmax
            probabilities = outputs if ends_in_probabilities(self._model) else squash(outputs)
            for name, metric in zip(self._names, self._metrics, strict=True):
                update_metric(metric, name, labels, probabilities)
        return self._scores.count(labels, outputs)

    def _sum_metrics(self, cluster: Cluster) -> None:
        by_type: dict[tf.DType, list[tf.Variable]] = {}
        for variable in (variable for metric in self._metrics for variable in metric.variables):
            by_type.setdefault(variable.dtype, []).append(variable)
        for dtype, variables in by_type.items():
            for variable, value in zip(variables, cluster.sum(variables, f"metrics_{dtype.name}"), strict=True):
                variable.assign(value)
