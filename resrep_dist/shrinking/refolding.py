"""Convolution, batch norm and compactor folded and set up again at the surviving width."""

from collections.abc import Iterable, Mapping
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
    """Convolution, batch norm and compactor folded (section 3.2) and set up anew as wide as the compactor.

    The new compactor is the diagonal of the row norms, so that the ranking goes on; the convolution takes the
    rest. The batch norm changes nothing until `calibrate` gives it statistics.
    """
    live = live_graph(model, graph)
    compacted = {layer.name: layer for layer in live.layers}
    batch_norms = {layer.batch_norm for layer in live.layers}

    def narrower(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        changes: dict[str, Any] = {}
        if layer.name in compacted:
            changes = width_behind_compactor(model, live, compacted[layer.name])
            # What the folded offset needs a place in.
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
    """Names of the layers that `refolded` sets up anew."""
    names = {name for layer in graph.layers for name in (layer.name, layer.batch_norm, layer.compactor)}
    return {name for name in names if name is not None}


def norm_velocities(
    model: keras.Model, narrow: keras.Model, graph: Graph, velocities: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The compactors' velocities of a `refolded` model: row norms go on as fast as they did in the model before.

    Without, each refolding would stop rows that are dying, and at a momentum of 0.99 they take 100 steps to be as fast
    again. The velocity across a row has no like in the new compactor.

    Args:
        velocities: by the names of their weights, of the model before.
    """
    result = {}
    for layer in graph.layers:
        name = f"{layer.compactor}/kernel"
        kernel = model.get_layer(layer.compactor).kernel.numpy().astype(np.float64)
        squares = np.sum(np.square(kernel), axis=-2)
        rates = np.sum(kernel * velocities[name], axis=-2) / np.where(squares > 0, squares, 1.0)
        result[name] = narrow.get_layer(layer.compactor).kernel.numpy() * rates
    return result


def calibrate(model: keras.Model, graph: Graph, batches: Iterable[tf.Tensor], cluster: Cluster) -> None:
    """Give the batch norms of a refolded model the statistics of these images, without a change of the function.

    A collective; the statistics are those of all ranks' images.
    """
    pairs = [(layer.name, layer.batch_norm) for layer in graph.layers if layer.batch_norm]
    if not pairs:
        return
    inner = keras.Model(model.inputs, [model.get_layer(name).output for name, _ in pairs])

    @tf.function(reduce_retracing=True)
    def moments(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = [tf.cast(output, tf.float64) for output in tf.nest.flatten(inner(images, training=False))]
        both = [tf.nn.moments(output, list(range(output.shape.rank - 1))) for output in outputs]
        return [tf.stack([mean, variance + tf.square(mean)]) for mean, variance in both]

    count, sums = 0.0, [0.0] * len(pairs)
    for images in batches:
        count += len(images)
        sums = [total + len(images) * value for total, value in zip(sums, moments(images), strict=True)]
    *summed, total_count = cluster.sum([*sums, tf.constant(count, tf.float64)], "calibration")
    for (_, name), value in zip(pairs, summed, strict=True):
        mean, square = (value / total_count).numpy()
        batch_norm = model.get_layer(name)
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
    new.set_weights([*kernels, *([bias] if new.use_bias else [])])
    identity = narrow.get_layer(layer.compactor)
    identity.set_weights([identity.kernel.numpy() * norms, compactor.mask.numpy()])
