"""A live model at smaller widths, its optimizer's state with it: pruning that gets cheaper while it prunes."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrep_dist.cluster import Cluster
from resrep_dist.compactor import Compactor, live_graph
from resrep_dist.errors import CheckpointError, one_line
from resrep_dist.graph import CallInputs, Graph, PrunableLayer, copy_weights, rebuild
from resrep_dist.graph.kinds import batch_norm_as_affine
from resrep_dist.graph.weighted import Weighted
from resrep_dist.merging.folding import dead_constants, fold, width_behind_compactor
from resrep_dist.merging.surgery import keep_channels, kept_weights
from resrep_dist.state import model_variables, plain_name
from resrep_dist.sync_batch_norm import SyncBatchNormalization

import numpy as np
import tensorflow as tf
from tensorflow import keras

_BatchNorm = keras.layers.BatchNormalization


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which of the original channels a live model still has: all that it takes to build its like."""

    kept: tuple[tuple[int, ...], ...]
    """For each group, ascending."""
    is_refolded: bool = False
    """The layers before the compactors have lost the others too."""

    @classmethod
    def of(cls, graph: Graph, saved: Mapping[str, Any] | None = None) -> "Layout":
        """The one that a checkpoint's position holds as JSON; without, all channels of the original model.

        Raises:
            CheckpointError: where that is no layout of this graph.
        """
        if saved is None:
            return cls.of_widths(graph.widths)
        try:
            layout = cls(tuple(map(tuple, saved["kept"])), saved["is_refolded"])
            is_good = isinstance(layout.is_refolded, bool) and all(
                kept and list(kept) == sorted(set(kept).intersection(range(width)))
                for kept, width in zip(layout.kept, graph.widths, strict=True)
            )
        except (TypeError, KeyError, ValueError):
            is_good = False
        if not is_good:
            raise CheckpointError(
                f"the checkpoint's layout {one_line(saved)} is not one of this model's {len(graph.widths)} groups; "
                "use another --workdir"
            )
        return layout

    @classmethod
    def of_widths(cls, widths: Iterable[int], is_refolded: bool = False) -> "Layout":
        """The first channels of each group."""
        return cls(tuple(tuple(range(width)) for width in widths), is_refolded)

    @property
    def widths(self) -> list[int]:
        """Channels of each group."""
        return [len(channels) for channels in self.kept]

    def dead(self, graph: Graph) -> list[np.ndarray]:
        """For each group bool [width], the original channels that are gone."""
        return [~np.isin(np.arange(width), kept) for width, kept in zip(graph.widths, self.kept, strict=True)]

    def without(self, dead: Sequence[np.ndarray]) -> "Layout":
        """Without these of its channels, for each group bool [D]."""
        kept = zip(self.kept, dead, strict=True)
        return dataclasses.replace(self, kept=tuple(tuple(np.asarray(k)[~d].tolist()) for k, d in kept))


def at_layout(model: keras.Model, graph: Graph, layout: Layout) -> keras.Model:
    """A model with full compactors at the widths of a layout, for weights to be loaded into."""
    if layout == Layout.of(graph):
        return model
    narrow = without_channels(model, graph, layout.dead(graph))
    return refolded(narrow, graph) if layout.is_refolded else narrow


def removable(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those of the dead channels, for each group bool [D], that a live model can lose.

    A channel that is a constant behind a batch norm or a sigmoid can where what it gives to a consumer can go into
    the consumer's bias, or into the running mean of the batch norm right behind it.
    """
    live = live_graph(model, graph)
    result = [channels.copy() for channels in dead]
    for name in dead_constants(model, live, dead):
        layer = model.get_layer(name)
        if not layer.use_bias and _batch_norm_behind(layer) is None:
            for group, _ in live.channels[name].inputs[0]:
                if group is not None:
                    result[group][:] = False
    return result


def without_channels(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> keras.Model:
    """The model with compactors without these `removable` channels; the function is the same.

    Where all consumers receive zeros from dead channels, as in models without depthwise layers, the gradients of
    everything that stays are the same too; also where a batch norm follows the consumer, since it takes any
    constant out (its running mean alone then goes another way). Not so with dropout, whose random numbers change with
    the width, and with a limit on the gradients' norm, in which rows that are gone no longer count.
    """
    live = live_graph(model, graph)
    narrow = _with_clusters(keep_channels(model, live, [~channels for channels in dead]), model)
    for name, constants in dead_constants(model, live, dead).items():
        kind = live.channels[name].kind
        assert isinstance(kind, Weighted)
        response = kind.response(kind.kernels(model.get_layer(name)), constants)
        layer = narrow.get_layer(name)
        if layer.use_bias:
            layer.bias.assign_add(response)
        elif (batch_norm := _batch_norm_behind(layer)) is not None:
            batch_norm.moving_mean.assign_sub(response)
    return narrow


def narrow_velocities(
    model: keras.Model, graph: Graph, dead: Sequence[np.ndarray], velocities: Mapping[str, tf.Variable]
) -> dict[str, np.ndarray]:
    """The velocities, by the names of their weights, of the model without these channels."""
    variables = model_variables(model)
    weights = {name: variable.numpy() for name, variable in variables.items()}
    try:
        # They go the way of the weights, whose places they take meanwhile.
        for name, variable in variables.items():
            variable.assign(velocities[name] if name in velocities else tf.zeros_like(variable))
        narrow = kept_weights(model, live_graph(model, graph), [~channels for channels in dead])
    finally:
        for name, variable in variables.items():
            variable.assign(weights[name])
    layers = [(model.get_layer(name), arrays) for name, arrays in narrow.items()]
    named = [pair for layer, arrays in layers for pair in zip(layer.weights, arrays, strict=True)]
    return {plain_name(variable): array for variable, array in named if plain_name(variable) in velocities}


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

    narrow = _with_clusters(rebuild(model, narrower), model)
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


def _batch_norm_behind(layer: keras.layers.Layer) -> keras.layers.BatchNormalization | None:
    """The batch norm that alone receives a layer's output."""
    followers = [node.layer for node in layer.outbound_nodes]
    return followers[0] if len(followers) == 1 and isinstance(followers[0], _BatchNorm) else None


def _with_clusters(model: keras.Model, source: keras.Model) -> keras.Model:
    """What a layer's configuration does not hold."""
    for layer in model.layers:
        if isinstance(layer, SyncBatchNormalization):
            layer.cluster = source.get_layer(layer.name).cluster
    return model
