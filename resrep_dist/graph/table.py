"""The kind of each Keras layer: the one table to extend for a new layer."""

from collections.abc import Collection
from typing import Any

from resrep_dist.graph import joins, kinds, weighted
from resrep_dist.graph.kinds import Kind

from tensorflow import keras

_layers = keras.layers
_PASSING = (
    _layers.Cropping2D,
    _layers.MaxPooling2D,
    _layers.AveragePooling2D,
    _layers.Dropout,
    _layers.SpatialDropout2D,
    _layers.GaussianNoise,
    _layers.GaussianDropout,
    _layers.UpSampling2D,
    _layers.ActivityRegularization,
)
_UNKNOWN_TO_KERASSURGEON = (_layers.GaussianNoise, _layers.UpSampling2D, _layers.ActivityRegularization)
_GLOBAL_POOLING = (_layers.GlobalAveragePooling2D, _layers.GlobalMaxPooling2D)
ACTIVATIONS = (_layers.Activation, _layers.ReLU, _layers.LeakyReLU, _layers.ELU)
_JOINS = (_layers.Add, _layers.Subtract, _layers.Average, _layers.Maximum, _layers.Minimum)
_OTHER_CONVOLUTIONS = (_layers.Conv1D, _layers.Conv3D)
# Layers whose weights do not count as multiply-adds, by the convention of `macs.py`.
_NORMALIZATIONS = (
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "UnitNormalization",
    "Normalization",
    "LayerScale",
    "PReLU",
)


def kind_of(node: Any, is_shared: bool, excluded: Collection[str]) -> Kind:
    """Return the kind of a call's layer; layers that are not in the table are `Opaque`.

    Args:
        node: Keras' record of the call.
        is_shared: True if the layer is called several times.
        excluded: Names of layers whose output channels the configuration keeps.
    """
    layer = node.layer
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        reason = "it is channels_first; build the model with channels_last"
        if type(layer) is _layers.Conv2D:
            return weighted.Fixed("which is channels_first", reason)
        return _opaque(layer, f"a channels_first {type(layer).__name__}")
    if is_shared and (layer.weights or type(layer) is _layers.Reshape):
        if type(layer) is _layers.Conv2D:
            reason = "it is used at several places; one layer for each place could be pruned"
            return weighted.Fixed("which is used at several places", reason)
        return _opaque(layer, f"a {type(layer).__name__} that is used at several places")
    if len(node.flat_output_ids) > 1:
        return _opaque(layer, f"a {type(layer).__name__}")
    kind = _weighted(node, tuple(excluded)) or _passing(node)
    if kind is None and isinstance(layer, _OTHER_CONVOLUTIONS):
        return weighted.Fixed(f"a {type(layer).__name__}", f"it is a {type(layer).__name__}")
    return kind or _opaque(layer, f"a {type(layer).__name__}")


def _weighted(node: Any, excluded: tuple[str, ...]) -> Kind | None:
    layer = node.layer
    if type(layer) is _layers.Conv2D:
        return weighted.Grouped(excluded, layer.groups) if layer.groups > 1 else weighted.Convolution(excluded)
    if type(layer) is _layers.Dense:
        return weighted.Dense(excluded, on_vectors=len(node.input_shapes) == 2)
    if type(layer) is _layers.SeparableConv2D and layer.depth_multiplier == 1:
        return weighted.Separable(excluded)
    if type(layer) is _layers.Conv2DTranspose:
        return weighted.Transposed(excluded)
    return None


def _passing(node: Any) -> Kind | None:
    layer = node.layer
    rank = len(node.input_shapes) if isinstance(node.input_shapes, tuple) else len(node.input_shapes[0])
    if type(layer) in _PASSING:
        return kinds.Passing(type(layer) not in _UNKNOWN_TO_KERASSURGEON)
    if type(layer) in _GLOBAL_POOLING:
        return kinds.Passing(not layer.keepdims)
    if type(layer) is _layers.ZeroPadding2D:
        return kinds.ZeroPadding()
    if type(layer) in ACTIVATIONS:
        return kinds.Elementwise()
    if type(layer) is _layers.Rescaling and isinstance(layer.scale, int | float):
        return kinds.Elementwise(known_to_kerassurgeon=False)
    if type(layer) is _layers.BatchNormalization and list(layer.axis) == [rank - 1]:
        return kinds.BatchNorm()
    if type(layer) is _layers.DepthwiseConv2D and layer.depth_multiplier == 1:
        return kinds.Depthwise()
    if type(layer) is _layers.Flatten:
        return kinds.Flatten()
    if type(layer) is _layers.Reshape and _keeps_channels_last(node):
        return kinds.Reshape()
    if type(layer) in _JOINS:
        return joins.Join()
    if type(layer) is _layers.Multiply:
        return joins.Multiply()
    if type(layer) is _layers.Concatenate and layer.axis in (-1, rank - 1):
        return joins.Concatenate()
    return None


def _keeps_channels_last(node: Any) -> bool:
    """True if a reshape leaves the last axis as it is, or flattens all axes to one."""
    before, after = node.input_shapes, node.output_shapes
    return before[-1] is not None and (after[-1] == before[-1] or (len(after) == 2 and after[-1] is not None))


def _opaque(layer: keras.layers.Layer, description: str) -> Kind:
    is_free = not layer.weights or type(layer).__name__ in _NORMALIZATIONS
    return kinds.Opaque(description, is_free)
