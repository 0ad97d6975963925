"""One training step: forward, backward, one collective, update."""

from resrep_dist.cluster import Cluster
from resrep_dist.optimizer import ResRepOptimizer

import tensorflow as tf
from tensorflow import keras


class TrainStep:
    """The compiled step of one rank; its metrics stay on the device until they are read."""

    def __init__(self, model: keras.Model, optimizer: ResRepOptimizer, cluster: Cluster) -> None:
        self._model, self._optimizer, self._cluster = model, optimizer, cluster
        self._loss = sample_loss(model)
        self._dtype = keras.backend.floatx()
        optimizer.build(model.trainable_variables)
        self._statistics = [
            variable
            for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization)
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        # loss sum, correct, samples, skipped steps, skipped steps in a row
        self._totals = tf.Variable(tf.zeros([5], self._dtype), trainable=False)
        self.run = tf.function(self._run, reduce_retracing=True)

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call, over all ranks, and the counts of steps that were skipped."""
        loss, correct, count, skipped, in_a_row = (float(value) for value in self._totals.numpy())
        self._totals.assign([0.0, 0.0, 0.0, 0.0, in_a_row])
        count = max(count, 1.0)
        return {
            "loss": loss / count,
            "top1": 100.0 * correct / count,
            "skipped_steps": skipped,
            "skipped_steps_in_a_row": in_a_row,
        }

    def _run(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        # The forward pass changes the statistics; a step that is skipped must put them back.
        before = [tf.identity(statistic) for statistic in self._statistics]
        count = tf.cast(tf.shape(labels)[0], self._dtype)
        weights = self._model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self._model(images, training=True)
            loss = tf.reduce_sum(tf.cast(self._loss(labels, outputs), self._dtype))
            # Sums over samples, divided by the global count after the sum: parts may differ in size.
            objective = loss + count * sum(self._model.losses)
        gradients = tape.gradient(objective, weights)
        correct = tf.reduce_sum(tf.cast(tf.argmax(outputs, -1, labels.dtype) == labels, self._dtype))
        norms = self._optimizer.row_norms()
        weighted = [count * value for value in [*norms, *self._statistics]]
        is_bad = 1.0 - tf.cast(_all_finite([loss, *gradients]), self._dtype)
        summed = self._cluster.sum([*gradients, *weighted, tf.stack([loss, correct, count, is_bad])], "step")
        loss, correct, count, num_bad = tf.unstack(summed[-1])
        averaged = [value / count for value in summed[:-1]]
        gradients, rest = averaged[: len(weights)], averaged[len(weights) :]
        is_good = num_bad == 0
        for statistic, new, old in zip(self._statistics, rest[len(norms) :], before, strict=True):
            statistic.assign(tf.where(is_good, new, old))
        if is_good:
            self._optimizer.apply_gradients(zip(gradients, weights, strict=True), norms=rest[: len(norms)])
            self._totals.assign(self._totals * [1, 1, 1, 1, 0] + tf.stack([loss, correct, count, 0.0, 0.0]))
        else:
            # The schedule goes on with the data.
            self._optimizer.iterations.assign_add(1)
            self._totals.assign_add([0.0, 0.0, 0.0, 1.0, 1.0])


def sample_loss(model: keras.Model) -> keras.losses.Loss:
    """Cross-entropy per sample, from logits unless the model ends in a softmax."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=not ends_in_softmax(model), reduction=keras.losses.Reduction.NONE
    )


def ends_in_softmax(model: keras.Model) -> bool:
    """True where the model's outputs are probabilities."""
    last = model.layers[-1]
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def _all_finite(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
