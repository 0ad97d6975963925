"""Takes the compactors out of a model in training, once nothing is left to prune."""

from typing import Any

from resrep_dist.graph import CallInputs, Graph, PrunableLayer, copy_weights, rebuild
from resrep_dist.graph.weighted import Weighted
from resrep_dist.layers.compactor import Compactor
from resrep_dist.layers.insertion import live_graph
from resrep_dist.layers.sync_batch_norm import copy_clusters
from resrep_dist.shrinking.refolding import refolded

import numpy as np
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
    square = refolded(model, graph)

    def without_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        return inputs.args[0] if isinstance(layer, Compactor) else clone(*inputs.args, **inputs.kwargs)

    plain = copy_clusters(rebuild(square, without_compactor), square)
    copy_weights(square, plain)
    live = live_graph(model, graph)
    for layer in live.layers:
        _take_in(model, square, plain, live, layer)
    return plain


def _take_in(model: keras.Model, square: keras.Model, plain: keras.Model, live: Graph, layer: PrunableLayer) -> None:
    """Give the layer before a diagonal compactor, or its batch norm, the factors of the compactor."""
    kind, convolution = live.channels[layer.name].kind, plain.get_layer(layer.name)
    assert isinstance(kind, Weighted)
    factors = np.linalg.norm(square.get_layer(layer.compactor).matrix().astype(np.float64), axis=0)
    kernels = kind.kernels(convolution)
    bias = [convolution.bias.numpy()] if convolution.use_bias else []
    if layer.batch_norm is None:
        kernels[-1] = kernels[-1] * factors
        convolution.set_weights([*kind.stored(kernels), *(values * factors for values in bias)])
        return
    before = np.sqrt(np.mean(np.square(_filter_norms(kind.kernels(model.get_layer(layer.name))[-1]))))
    norms = _filter_norms(kernels[-1])
    scales = np.where(norms > 0, before / np.where(norms > 0, norms, 1.0), 1.0)
    kernels[-1] = kernels[-1] * scales
    # A layer with a batch norm behind it has a bias of 0 after `refolded`.
    convolution.set_weights([*kind.stored(kernels), *bias])
    gamma, beta, mean, variance = plain.get_layer(layer.batch_norm).get_weights()
    plain.get_layer(layer.batch_norm).set_weights([gamma * factors / scales, beta * factors, mean, variance])


def _filter_norms(kernel: np.ndarray) -> np.ndarray:
    """Return the norm of each filter of a kernel [..., C_in, D], [D]."""
    return np.sqrt(np.sum(np.square(kernel.astype(np.float64)), axis=tuple(range(kernel.ndim - 1))))
