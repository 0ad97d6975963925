"""Takes the compactors out of a model in training, once nothing is left to prune."""

from collections.abc import Callable, Iterable, Sequence
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


def merged(model: keras.Model, graph: Graph) -> keras.Model:
    """Fold convolution, batch norm and compactor (section 3.2) into a convolution and a batch norm of its width.

    The batch norm stays, so that the slim model trains as its kind of network does; the merge at the end of the run
    folds it. It does not change its input until `calibrate` gives it statistics. Behind a batch norm the norm of a
    filter does not matter for the outputs, but it sets how far a step of a given learning rate turns the filter. So
    each filter gets the root mean square of the norms that the filters of its layer had.

    Args:
        model: A model with compactors whose dead channels are removed, see `without_channels`.
        graph: Trace of the original model.

    Returns:
        A new model without compactors, with the same outputs in inference.
    """
    live = live_graph(model, graph)
    compacted = {layer.name: layer for layer in live.layers}
    batch_norms = {layer.batch_norm for layer in live.layers}

    def without_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if isinstance(layer, Compactor):
            return inputs.args[0]
        changes: dict[str, Any] = {}
        if layer.name in compacted:
            changes = width_behind_compactor(model, live, compacted[layer.name])
            # The bias receives the folded offset.
            changes |= {} if compacted[layer.name].batch_norm else {"use_bias": True}
        elif layer.name in batch_norms:
            changes = {"scale": True, "center": True}
        if changes:
            clone = type(layer).from_config({**clone.get_config(), **changes})
        return clone(*inputs.args, **inputs.kwargs)

    plain = copy_clusters(rebuild(model, without_compactor), model)
    copy_weights(model, plain, skip=folded_layers(graph))
    for layer in live.layers:
        _fold_into(plain, model, live, layer)
    return plain


def folded_layers(graph: Graph) -> set[str]:
    """Return the names of the layers that `merged` folds.

    Args:
        graph: Trace of the original model.
    """
    names = {name for layer in graph.layers for name in (layer.name, layer.batch_norm, layer.compactor)}
    return {name for name in names if name is not None}


def calibrate(models: Sequence[keras.Model], graph: Graph, batches: Iterable[tf.Tensor], cluster: Cluster) -> None:
    """Set the statistics of the batch norms of merged models, without changing their outputs. A collective.

    Scale and offset of each batch norm are adjusted to the new statistics.

    Args:
        models: The merged models, of the same shape.
        graph: Trace of the original model.
        batches: This rank's images, [B, height, width, channels] each. The statistics are those of all ranks' images.
        cluster: The ranks.
    """
    pairs = [(layer.name, layer.batch_norm) for layer in graph.layers if layer.batch_norm]
    if not pairs:
        return
    batch_norms = [model.get_layer(name) for model in models for _, name in pairs]
    # One model after the other, since the outputs of all layers are in memory at once.
    functions = [_moments_of(model, [name for name, _ in pairs]) for model in models]
    count, sums = 0.0, [0.0] * len(batch_norms)
    for images in batches:
        count += len(images)
        values = [value for moments in functions for value in moments(images)]
        sums = [total + len(images) * value for total, value in zip(sums, values, strict=True)]
    *summed, total_count = cluster.sum([*sums, tf.constant(count, tf.float64)], "calibration")
    for batch_norm, value in zip(batch_norms, summed, strict=True):
        mean, square = (value / total_count).numpy()
        scale, offset = batch_norm_as_affine(batch_norm)
        batch_norm.moving_mean.assign(mean)
        batch_norm.moving_variance.assign(np.maximum(square - mean**2, 0.0))
        batch_norm.gamma.assign(scale * np.sqrt(batch_norm.moving_variance.numpy() + batch_norm.epsilon))
        batch_norm.beta.assign(offset + scale * mean)


def _moments_of(model: keras.Model, names: Sequence[str]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Return a function of images that gives mean and mean square of the outputs of layers, float64 [2, C] each."""
    inner = keras.Model(model.inputs, [model.get_layer(name).output for name in names])

    @tf.function(reduce_retracing=True)
    def moments(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = [tf.cast(output, tf.float64) for output in tf.nest.flatten(inner(images, training=False))]
        both = [tf.nn.moments(output, list(range(output.shape.rank - 1))) for output in outputs]
        return [tf.stack([mean, variance + tf.square(mean)]) for mean, variance in both]

    return moments


def _fold_into(plain: keras.Model, model: keras.Model, live: Graph, layer: PrunableLayer) -> None:
    """Give a layer of the merged model, and its batch norm if it has one, what they fold."""
    kind, old, new = live.channels[layer.name].kind, model.get_layer(layer.name), plain.get_layer(layer.name)
    assert isinstance(kind, Weighted)
    kernels, matrix = kind.kernels(old), model.get_layer(layer.compactor).matrix()
    bias = old.bias.numpy() if old.use_bias else np.zeros(kind.num_outputs(kernels))
    batch_norm = model.get_layer(layer.batch_norm) if layer.batch_norm else None
    norms = np.linalg.norm(matrix.astype(np.float64), axis=0)
    folded = fold(kernels[-1], bias, batch_norm, matrix / np.where(norms > 0, norms, 1.0))
    # Rounded as weights are before the rows of the compactor get their norms back: as ever, so that the bits stay.
    kernel, offset, norms = (values.astype(matrix.dtype).astype(np.float64) for values in (*folded, norms))
    if batch_norm is None:
        new.set_weights([*kind.stored([*kernels[:-1], kernel * norms]), offset * norms])
        return
    before, after = np.sqrt(np.mean(np.square(_filter_norms(kernels[-1])))), _filter_norms(kernel)
    scales = np.where(after > 0, before / np.where(after > 0, after, 1.0), 1.0)
    # A layer with a batch norm behind it has no offset of its own.
    new.set_weights([*kind.stored([*kernels[:-1], kernel * scales]), *([0.0 * offset] if new.use_bias else [])])
    gamma = np.sqrt(1.0 + batch_norm.epsilon).astype(matrix.dtype)
    plain.get_layer(layer.batch_norm).set_weights(
        [gamma * norms / scales, offset * norms, np.zeros(len(norms)), np.ones(len(norms))]
    )


def _filter_norms(kernel: np.ndarray) -> np.ndarray:
    """Return the norm of each filter of a kernel [..., C_in, D], [D]."""
    return np.sqrt(np.sum(np.square(kernel.astype(np.float64)), axis=tuple(range(kernel.ndim - 1))))
