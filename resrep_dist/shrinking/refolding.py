"""Folds convolution, batch norm and compactor, and sets all three up again at the width of the surviving channels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import CallInputs, Graph, PrunableLayer, copy_weights, rebuild
from resrep_dist.graph.kinds import batch_norm_as_affine
from resrep_dist.graph.weighted import Weighted
from resrep_dist.layers.compactor import Compactor
from resrep_dist.layers.insertion import live_graph
from resrep_dist.layers.sync_batch_norm import copy_clusters
from resrep_dist.merging.folding import fold, width_behind_compactor

import numpy as np
import tensorflow as tf
from tensorflow import keras


def refolded(model: keras.Model, graph: Graph) -> keras.Model:
    """Fold convolution, batch norm and compactor (section 3.2), and set them up again as wide as the compactor.

    The convolution receives the folded kernel with rows of the compactor divided by their norms, and the new compactor
    is the diagonal matrix of these norms. So every row keeps its norm. The ranking of the channels, the penalty and the
    distance of a masked row to zero depend on nothing else, and pruning continues where it was. With an identity
    instead, all norms would be 1 again. The batch norm does not change its input until `calibrate` gives it statistics.

    Args:
        model: A model with compactors whose dead channels are removed, see `without_channels`.
        graph: Trace of the original model.

    Returns:
        A new model with the same outputs in inference.
    """
    live = live_graph(model, graph)
    compacted = {layer.name: layer for layer in live.layers}
    batch_norms = {layer.batch_norm for layer in live.layers}

    def narrower(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        changes: dict[str, Any] = {}
        if layer.name in compacted:
            changes = width_behind_compactor(model, live, compacted[layer.name])
            # The bias receives the folded offset.
            changes |= {} if compacted[layer.name].batch_norm else {"use_bias": True}
        elif layer.name in batch_norms:
            changes = {"scale": True, "center": True}
        elif isinstance(layer, Compactor):
            changes = {"channels": None}
        if changes:
            clone = type(layer).from_config({**clone.get_config(), **changes})
        return clone(*inputs.args, **inputs.kwargs)

    narrow = copy_clusters(rebuild(model, narrower), model)
    copy_weights(model, narrow, skip=refolded_layers(graph))
    for layer in live.layers:
        _refold(model, narrow, live, layer)
    return narrow


def refolded_layers(graph: Graph) -> set[str]:
    """Return the names of the layers that `refolded` sets up again.

    Args:
        graph: Trace of the original model.
    """
    names = {name for layer in graph.layers for name in (layer.name, layer.batch_norm, layer.compactor)}
    return {name for name in names if name is not None}


def norm_velocities(
    model: keras.Model, narrow: keras.Model, graph: Graph, velocities: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the velocities of the compactors of a refolded model: each row norm changes as fast as before.

    A row of the new compactor is its norm times a unit vector. Only the radial part of the old velocity, Q_j v_j /
    ||Q_j||, changes the norm, and it continues along the new row. The tangential part turned the row. It has no
    counterpart, since the direction of the row is now a part of the convolution's kernel. Without these velocities each
    refolding would stop the rows that are dying, which need about 100 steps to regain their speed at a momentum of
    0.99.

    Args:
        model: The model before `refolded`.
        narrow: The model after `refolded`.
        graph: Trace of the original model.
        velocities: Velocities of the model before, by the names of their weights.

    Returns:
        Velocities of the compactors, by the names of their weights. That of a zero row is 0.
    """
    result = {}
    for layer in graph.layers:
        name = f"{layer.compactor}/kernel"
        kernel = model.get_layer(layer.compactor).kernel.numpy().astype(np.float64)
        squares = np.sum(np.square(kernel), axis=-2)
        rates = np.sum(kernel * velocities[name], axis=-2) / np.where(squares > 0, squares, 1.0)
        result[name] = narrow.get_layer(layer.compactor).kernel.numpy() * rates
    return result


def calibrate(models: Sequence[keras.Model], graph: Graph, batches: Iterable[tf.Tensor], cluster: Cluster) -> None:
    """Set the statistics of the batch norms of refolded models, without changing their outputs. A collective.

    Scale and offset of each batch norm are adjusted to the new statistics.

    Args:
        models: The refolded models, of the same shape.
        graph: Trace of the original model.
        batches: This rank's images, [B, height, width, channels] each. The statistics are those of all ranks' images.
        cluster: The ranks.
    """
    pairs = [(layer.name, layer.batch_norm) for layer in graph.layers if layer.batch_norm]
    if not pairs:
        return
    batch_norms = [model.get_layer(name) for model in models for _, name in pairs]
    inner = [keras.Model(model.inputs, [model.get_layer(name).output for name, _ in pairs]) for model in models]

    @tf.function(reduce_retracing=True)
    def moments(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = tf.nest.flatten([model(images, training=False) for model in inner])
        outputs = [tf.cast(output, tf.float64) for output in outputs]
        both = [tf.nn.moments(output, list(range(output.shape.rank - 1))) for output in outputs]
        return [tf.stack([mean, variance + tf.square(mean)]) for mean, variance in both]

    count, sums = 0.0, [0.0] * len(batch_norms)
    for images in batches:
        count += len(images)
        sums = [total + len(images) * value for total, value in zip(sums, moments(images), strict=True)]
    *summed, total_count = cluster.sum([*sums, tf.constant(count, tf.float64)], "calibration")
    for batch_norm, value in zip(batch_norms, summed, strict=True):
        mean, square = (value / total_count).numpy()
        scale, offset = batch_norm_as_affine(batch_norm)
        batch_norm.moving_mean.assign(mean)
        batch_norm.moving_variance.assign(np.maximum(square - mean**2, 0.0))
        batch_norm.gamma.assign(scale * np.sqrt(batch_norm.moving_variance.numpy() + batch_norm.epsilon))
        batch_norm.beta.assign(offset + scale * mean)


def _refold(model: keras.Model, narrow: keras.Model, live: Graph, layer: PrunableLayer) -> None:
    kind, old, new = live.channels[layer.name].kind, model.get_layer(layer.name), narrow.get_layer(layer.name)
    assert isinstance(kind, Weighted)
    kernels, compactor = kind.kernels(old), model.get_layer(layer.compactor)
    matrix = compactor.matrix().astype(np.float64)
    norms = np.linalg.norm(matrix, axis=0)
    bias = old.bias.numpy() if old.use_bias else np.zeros(kind.num_outputs(kernels))
    batch_norm = model.get_layer(layer.batch_norm) if layer.batch_norm else None
    kernels[-1], bias = fold(kernels[-1], bias, batch_norm, matrix / np.where(norms > 0, norms, 1.0))
    if batch_norm is not None:
        behind = narrow.get_layer(layer.batch_norm)
        ones = np.ones(len(norms))
        behind.set_weights([ones * np.sqrt(1.0 + behind.epsilon), bias, 0.0 * ones, ones])
        bias = 0.0 * ones
    new.set_weights([*kind.stored(kernels), *([bias] if new.use_bias else [])])
    identity = narrow.get_layer(layer.compactor)
    identity.set_weights([identity.kernel.numpy() * norms, compactor.mask.numpy()])
