"""Knowledge distillation: the base model as the teacher of the model that is pruned.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), section 2.
"""

from resrep_dist.config import Config, DistillationConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import flatten
from resrep_dist.layers.replacement import with_precision
from resrep_dist.models.calling import with_autograph
from resrep_dist.models.softmax import ends_in_probabilities

import tensorflow as tf
from tensorflow import keras


class Teacher:
    """A model whose outputs the trained one is to match. Its weights stay as they are, and are in no checkpoint.

    Args:
        model: The teacher; it returns logits.
        config: Weight and temperature.
    """

    def __init__(self, model: keras.Model, config: DistillationConfig) -> None:
        self._model, self._weight, self._temperature = model, config.weight, config.temperature

    def share(self, cluster: Cluster) -> None:
        """Give all ranks the teacher of rank 0. A collective.

        Args:
            cluster: The ranks.
        """
        cluster.broadcast(self._model.weights)

    def taught(self, losses: tf.Tensor, images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each sample, of which a part is the distance to the teacher.

        (1 - weight) * loss + weight * T^2 * KL(softmax(teacher / T) || softmax(logits / T)). The factor T^2 makes up
        for the gradients of the softened softmax, which shrink with 1 / T^2.

        Args:
            losses: Loss by the labels, [B].
            images: The images as the trained model gets them, [B, height, width, channels].
            logits: Outputs of the trained model, [B, classes].

        Returns:
            [B].
        """
        with tf.name_scope("teacher"):
            wanted = tf.stop_gradient(tf.cast(with_autograph(self._model, images, training=False), logits.dtype))
        log_wanted, log_given = (tf.nn.log_softmax(values / self._temperature) for values in (wanted, logits))
        distances = tf.reduce_sum(tf.exp(log_wanted) * (log_wanted - log_given), -1)
        return (1.0 - self._weight) * losses + self._weight * self._temperature**2 * distances


def make_teacher(model: keras.Model, config: Config) -> Teacher | None:
    """Create the teacher of a pruning phase; None if the configuration has no `train.distillation`.

    Args:
        model: The base model with its trained weights, which is not changed.
        config: The configuration of the run.

    Raises:
        ConfigError: If the model does not return logits of classes.
    """
    distillation = config.train.distillation
    if distillation is None:
        return None
    if ends_in_probabilities(model) or len(model.outputs) != 1 or model.output_shape[-1] < 2:
        raise ConfigError(
            f"train.distillation: the outputs of {model.name} are not the logits of at least 2 classes, which the "
            "distance to the teacher is computed from; take its softmax or sigmoid off, or leave out "
            "train.distillation"
        )
    return Teacher(with_precision(flatten(model), config.training.precision), distillation)
