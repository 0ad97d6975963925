"""The trainer's result by Keras' own `compile` and `fit`."""

from pathlib import Path

import resrep_dist
from resrep_dist.config import Config
from resrep_dist.data.order import training_batches
from resrep_dist.data.source import Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.training.keras_callbacks import ChannelMasks, Checkpoints, PruningCurves
from resrep_dist.training.schedules import phase_schedule

import tensorflow as tf
from tensorflow import keras


def fit(
    model: keras.Model, config: Config, source: Source, num_steps: int, cluster: Cluster | None, folder: Path
) -> ChannelMasks:
    """Fit the first steps of what `Trainer(model, trace(model), config, ...)` trains; returns the callback.

    Args:
        cluster: None forgets it, as a user might.
    """
    graph = resrep_dist.trace(model)
    model = resrep_dist.insert_compactors(model, graph)
    steps_per_epoch = len(source) / config.data.global_batch_size
    length = round(steps_per_epoch * config.train.num_epochs)
    optimizer = resrep_dist.ResRepOptimizer(
        phase_schedule(config.train, config.data.global_batch_size, length, 100),
        [model.get_layer(layer.compactor) for layer in graph.layers],
        lasso_strength=config.prune.lasso_strength,
        cluster=cluster,
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    masks = ChannelMasks(
        graph, config.prune, cluster=cluster,
        first_step=round(steps_per_epoch * config.prune.mask_start_epochs),
        last_step=int(length * config.prune.mask_stop_fraction),
    )  # fmt: skip
    cluster = masks.cluster
    checkpoints = Checkpoints(folder / "checkpoints", masks, interval_steps=10)
    curves = PruningCurves(folder / "tensorboard", masks, interval_steps=5)
    first_step = checkpoints.saved_step()
    batches = training_batches(
        source, global_batch_size=config.data.global_batch_size, augmentation="none", seed=2 * config.seed + 1,
        rank=cluster.rank, num_ranks=cluster.size, first_step=first_step,
    )  # fmt: skip
    validation = tf.data.Dataset.from_tensor_slices((source.images[:32], source.labels[:32])).batch(16)
    model.fit(
        iter(batches), epochs=num_steps // 10, initial_epoch=first_step // 10, steps_per_epoch=10, verbose=0,
        validation_data=validation, callbacks=[masks, checkpoints, curves],
    )  # fmt: skip
    return masks
