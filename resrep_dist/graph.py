"""A Keras functional model -> which channels may go, who consumes them, and what they cost.

A convolution is prunable when its channels reach only convolutions and dense layers, through layers that
treat every channel alone and map zero to zero. All others are refused by name with the reason.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.macs import MultiplyAdds

import numpy as np
import tensorflow as tf
from tensorflow import keras

_layers = keras.layers
# Every channel is treated alone, and an all-zero channel stays all zero.
_TRANSPARENT = (
    _layers.ZeroPadding2D,
    _layers.Cropping2D,
    _layers.MaxPooling2D,
    _layers.AveragePooling2D,
    _layers.GlobalAveragePooling2D,
    _layers.GlobalMaxPooling2D,
    _layers.Dropout,
    _layers.SpatialDropout2D,
    _layers.Flatten,
)
# Tested one by one for mapping zero to zero.
ELEMENTWISE = (_layers.Activation, _layers.ReLU, _layers.LeakyReLU, _layers.ELU)


@dataclasses.dataclass(frozen=True)
class PrunableLayer:
    """A convolution whose output channels may go."""

    name: str
    """The convolution."""
    batch_norm: str | None
    """The batch norm right behind it, folded together with it."""
    width: int
    """Output channels."""
    consumers: tuple[str, ...]
    """Convolutions and dense layers that lose input channels with it."""

    @property
    def site(self) -> str:
        """The layer behind which the compactor stands."""
        return self.batch_norm or self.name

    @property
    def compactor(self) -> str:
        """The compactor's name."""
        return f"{self.name}_compactor"


@dataclasses.dataclass(frozen=True)
class Graph:
    """What `trace` finds: prunable layers in topological order, the others with the reason, the cost."""

    layers: tuple[PrunableLayer, ...]
    refused: dict[str, str]
    macs: MultiplyAdds

    @property
    def widths(self) -> list[int]:
        """Full width of each prunable layer."""
        return [layer.width for layer in self.layers]


@dataclasses.dataclass(frozen=True)
class CallInputs:
    """What a layer is called on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def trace(model: keras.Model, exclude: Sequence[str] = ()) -> Graph:
    """Trace a functional model of convolutions, batch norm, activations, pooling, padding, Add and Dense.

    Args:
        exclude: convolutions to leave as they are.

    Raises:
        ModelError: for a subclassed model, a layer whose multiply-adds are not known, sizes left open, a name
            in `exclude` that the model does not have.
    """
    if not isinstance(model, keras.Sequential) and not getattr(model, "_is_graph_network", False):
        raise ModelError(f"model {model.name}: expected a functional Keras model, received a subclassed one")
    if not model.built:
        raise ModelError(f"model {model.name}: not built; give its first layer an input_shape")
    unknown = sorted(set(exclude) - {layer.name for layer in model.layers})
    if unknown:
        raise ModelError(f"prune.exclude: received '{unknown[0]}', expected names of convolutions of {model.name}")
    consumers = _consumers(model)
    layers, refused = [], dict.fromkeys(exclude, "it is excluded by the configuration")
    for node in _nodes(model):
        if type(node.layer) is not _layers.Conv2D or node.layer.name in exclude:
            continue
        try:
            layers.append(_trace_convolution(model, node, consumers))
        except _Refused as reason:
            refused[node.layer.name] = str(reason)
    return Graph(tuple(layers), refused, _count_macs(model, layers))


def rebuild(
    model: keras.Model, call: Callable[[keras.layers.Layer, keras.layers.Layer, CallInputs], Any]
) -> keras.Model:
    """Build a functional model anew, layer by layer, from the layers' configurations.

    Args:
        call: gets a layer of `model`, its clone (not built yet) and what the clone is to be called on, and
            returns the outputs that take the place of the layer's.
    """
    inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.node.layer.name) for t in model.inputs]
    # Keras takes a tensor out of its list at every use, so each stands there as often as it is used.
    num_uses = model._tensor_usage_count
    tensors = {str(id(old)): [new] * num_uses[str(id(old))] for old, new in zip(model.inputs, inputs, strict=True)}
    clones: dict[str, keras.layers.Layer] = {}
    for node in _nodes(model):
        layer = node.layer
        if layer.name not in clones:
            clones[layer.name] = layer.__class__.from_config(layer.get_config())
        args, kwargs = node.map_arguments(tensors)
        outputs = call(layer, clones[layer.name], CallInputs(args, kwargs))
        for key, output in zip(node.flat_output_ids, tf.nest.flatten(outputs), strict=True):
            tensors[key] = [output] * num_uses[key]
    outputs = [tensors[str(id(output))].pop() for output in model.outputs]
    return keras.Model(inputs, outputs[0] if len(outputs) == 1 else outputs, name=model.name)


def copy_weights(source: keras.Model, target: keras.Model, skip: Collection[str] = ()) -> None:
    """Copy the weights of all layers that both models have under one name, but those to `skip`."""
    names = {layer.name for layer in source.layers} - set(skip)
    for layer in target.layers:
        if layer.name in names and layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


class _Refused(Exception):
    pass


def _nodes(model: keras.Model) -> Iterator[Any]:
    """The model's calls of layers, inputs left out, in the order in which they can be computed."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _consumers(model: keras.Model) -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = {}
    for node in _nodes(model):
        for key in node.flat_input_ids:
            result.setdefault(key, []).append(node)
    return result


def _trace_convolution(model: keras.Model, node: Any, consumers: dict[str, list[Any]]) -> PrunableLayer:
    layer = node.layer
    uses = [other for other in _nodes(model) if other.layer is layer]
    if len(uses) > 1:
        raise _Refused("it is used at several places")
    if layer.groups != 1:
        raise _Refused("it is a grouped convolution")
    if layer.data_format != "channels_last":
        raise _Refused("it is channels_first; build the model with channels_last")
    if layer.activation is not keras.activations.linear:
        raise _Refused("its activation is built in; put the activation into a layer of its own")
    if not layer.trainable:
        raise _Refused("it is frozen")
    key, batch_norm = node.flat_output_ids[0], None
    following = consumers.get(key, [])
    if len(following) == 1 and isinstance(following[0].layer, _layers.BatchNormalization):
        batch_norm = following[0].layer.name
        key = following[0].flat_output_ids[0]
    outputs = {str(id(tensor)) for tensor in model.outputs}
    found = sorted(set(_follow(key, consumers, outputs)))
    return PrunableLayer(layer.name, batch_norm, int(layer.filters), tuple(found))


def _follow(key: str, consumers: dict[str, list[Any]], outputs: set[str]) -> Iterator[str]:
    if key in outputs:
        raise _Refused("its channels are an output of the model")
    for node in consumers.get(key, []):
        layer = node.layer
        if _is_consumer(node):
            yield layer.name
        elif isinstance(layer, _layers.Add):
            raise _Refused(f"its channels meet others in the Add {layer.name}")
        elif isinstance(layer, _layers.BatchNormalization):
            raise _Refused(f"the batch norm {layer.name} behind it would turn a dead channel into a constant")
        elif isinstance(layer, ELEMENTWISE):
            _require_zero_to_zero(layer)
            yield from _follow(node.flat_output_ids[0], consumers, outputs)
        elif isinstance(layer, _TRANSPARENT):
            yield from _follow(node.flat_output_ids[0], consumers, outputs)
        else:
            raise _Refused(f"its channels reach {layer.name}, a {type(layer).__name__}")


def _is_consumer(node: Any) -> bool:
    """True for layers that can lose input channels: plain convolutions, dense layers on vectors."""
    if type(node.layer) is _layers.Dense:
        return node.input_tensors.shape.rank == 2
    return type(node.layer) is _layers.Conv2D and node.layer.groups == 1


def _require_zero_to_zero(layer: keras.layers.Layer) -> None:
    function = getattr(layer, "activation", None)
    if function in (keras.activations.softmax, keras.activations.get("log_softmax")):
        raise _Refused(f"the softmax {layer.name} mixes its channels")
    if np.any(layer(tf.zeros([1, 1, 1, 2])).numpy()):
        raise _Refused(f"the activation {layer.name} does not map 0 to 0")


def _count_macs(model: keras.Model, layers: list[PrunableLayer]) -> MultiplyAdds:
    site_index = {layer.site: index for index, layer in enumerate(layers)}
    consumer_of = {name: i for i, layer in enumerate(layers) for name in layer.consumers}
    produced_by = {layer.name: index for index, layer in enumerate(layers)}
    assert len(site_index) == len(layers)
    constant, linear = 0, [0] * len(layers)
    bilinear: dict[tuple[int, int], int] = {}
    for node in _nodes(model):
        counted = _cost_of_full_layer(node)
        if not counted:
            continue
        name = node.layer.name
        source, target = consumer_of.get(name), produced_by.get(name)
        groups = sorted(index for index in (source, target) if index is not None)
        cost = counted
        for index in groups:
            cost //= layers[index].width
        if not groups:
            constant += cost
        elif len(groups) == 1:
            linear[groups[0]] += cost
        else:
            pair = (groups[0], groups[1])
            bilinear[pair] = bilinear.get(pair, 0) + cost
    return MultiplyAdds(constant, tuple(linear), bilinear)


def _cost_of_full_layer(node: Any) -> int:
    """Multiply-adds of one call at full width: weights used at each output position x positions."""
    layer = node.layer
    if isinstance(layer, keras.Model):
        raise ModelError(f"layer {layer.name} is a model inside the model; build one flat functional model")
    kernel = getattr(layer, "depthwise_kernel" if _is_depthwise(layer) else "kernel", None)
    if kernel is None or not (_is_depthwise(layer) or type(layer) in (_layers.Conv2D, _layers.Dense)):
        if layer.weights and not isinstance(layer, _layers.BatchNormalization):
            raise ModelError(
                f"layer {layer.name}: multiply-adds of a {type(layer).__name__} are not known; "
                "expected Conv2D, DepthwiseConv2D, Dense and layers without weights"
            )
        return 0
    positions = node.output_tensors.shape[1:-1]
    if None in positions:
        raise ModelError(f"layer {layer.name}: its output size is open; build the model with a fixed input size")
    return int(np.prod(positions, dtype=np.int64)) * int(np.prod(kernel.shape, dtype=np.int64))


def _is_depthwise(layer: keras.layers.Layer) -> bool:
    return type(layer) is _layers.DepthwiseConv2D
