"""The training step of Keras' `fit`, with what a run on several ranks and a resumed run need."""

from typing import Any

from resrep_dist.checkpoints.variables import batch_norm_statistics
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.randomness import LayerRandomness, warn_of_other_randomness

import tensorflow as tf
from tensorflow import keras

# Positions per step, since the size of the global batch is not known; it is smaller.
_MAX_BATCH_SIZE = 1 << 24


def replace_fit_step(model: keras.Model, seed: int, cluster: Cluster) -> None:
    """Give a compiled model a training step with random numbers by position, which a batch with NaN leaves as it was.

    The random layers draw numbers that follow from seed, step, sample and layer. Keras says only how many samples a
    rank has. So each step has a fixed number of positions, and those of a rank begin after the ranks before it, which
    have equally many: rank r of n has the r-th part of the global batch.

    If the optimizer skips a step, the batch-norm statistics keep their values, too: a running average would never lose
    a NaN again.

    `fit` without the callbacks has this step from then on too.

    Args:
        model: A model that was compiled with a ResRepOptimizer, changed in place.
        seed: Seed of the random numbers, the same on all ranks.
        cluster: The ranks.
    """
    randomness = LayerRandomness(model, seed, _MAX_BATCH_SIZE, cluster)
    keras_step = getattr(model.train_step, "keras_step", model.train_step)
    statistics = batch_norm_statistics(model)

    def train_step(data: Any) -> Any:
        # Another optimizer, with which a program has compiled the model since, skips no step.
        can_skip = isinstance(model.optimizer, ResRepOptimizer)
        before = [tf.identity(variable) for variable in statistics] if can_skip else []
        samples = tf.nest.flatten(keras.utils.unpack_x_y_sample_weight(data)[0])[0]
        num_samples = tf.shape(samples, tf.int64)[0]
        first = model.optimizer.iterations * _MAX_BATCH_SIZE + cluster.rank * num_samples
        with randomness.at(first + tf.range(num_samples)):
            logs = keras_step(data)
        if can_skip:
            is_good = tf.equal(model.optimizer.num_skipped_in_a_row, 0)
            for variable, value in zip(statistics, before, strict=True):
                variable.assign(tf.where(is_good, variable, value))
        if not tf.executing_eagerly():
            warn_of_other_randomness(tf.compat.v1.get_default_graph(), [layer.name for layer in model.layers])
        return logs

    train_step.keras_step = keras_step  # type: ignore[attr-defined]
    model.train_step = train_step
    # An earlier `fit` may have compiled the step.
    model.make_train_function(force=True)
