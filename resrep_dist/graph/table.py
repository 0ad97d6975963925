"""The kind of each Keras layer: the one table to extend for a new layer."""

from collections.abc import Collection
from typing import Any

from resrep_dist.graph import joins, kinds, per_channel, weighted
from resrep_dist.graph.application_layers import LayerScale, StochasticDepth
from resrep_dist.graph.kinds import Kind

import numpy as np
from tensorflow import keras

_layers = keras.layers
# Those that kerassurgeon knows too.
_PASSING = (
    _layers.Cropping2D,
    _layers.MaxPooling2D,
    _layers.AveragePooling2D,
    _layers.Dropout,
    _layers.SpatialDropout2D,
    _layers.GaussianDropout,
)
_ALSO_PASSING = (
    _layers.Cropping1D,
    _layers.Cropping3D,
    _layers.MaxPooling1D,
    _layers.MaxPooling3D,
    _layers.AveragePooling1D,
    _layers.AveragePooling3D,
    _layers.SpatialDropout1D,
    _layers.SpatialDropout3D,
    _layers.GaussianNoise,
    _layers.UpSampling1D,
    _layers.UpSampling2D,
    _layers.UpSampling3D,
    _layers.ActivityRegularization,
    _layers.Resizing,
    _layers.CenterCrop,
    StochasticDepth,
)
_GLOBAL_POOLING = (_layers.GlobalAveragePooling2D, _layers.GlobalMaxPooling2D)
_OTHER_GLOBAL_POOLING = (
    _layers.GlobalAveragePooling1D,
    _layers.GlobalAveragePooling3D,
    _layers.GlobalMaxPooling1D,
    _layers.GlobalMaxPooling3D,
)
ACTIVATIONS = (_layers.Activation, _layers.ReLU, _layers.LeakyReLU, _layers.ELU)
_JOINS = (_layers.Add, _layers.Subtract, _layers.Average, _layers.Maximum, _layers.Minimum)
_OTHER_CONVOLUTIONS = (_layers.Conv1D, _layers.Conv3D)
_CONVOLUTIONS = (_layers.Conv2D, *_OTHER_CONVOLUTIONS)
OPERATORS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")
"""Names of Keras' layers for calls of TensorFlow's functions, whose arguments are part of what they compute."""
# Layers that normalize by statistics of several channels.
_OF_ALL_CHANNELS = (_layers.LayerNormalization, _layers.GroupNormalization)
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
        if type(layer) in _CONVOLUTIONS:
            return weighted.Fixed("which is channels_first", reason)
        return _opaque(layer, f"a channels_first {type(layer).__name__}")
    if is_shared and (layer.weights or _has_widths(layer)):
        if type(layer) in _CONVOLUTIONS:
            reason = "it is used at several places; one layer for each place could be pruned"
            return weighted.Fixed("which is used at several places", reason)
        return _opaque(layer, f"a {type(layer).__name__} that is used at several places")
    if len(node.flat_output_ids) > 1 or type(layer).__name__ in OPERATORS:
        return _opaque(layer, f"a {type(layer).__name__}")
    kind = _weighted(node, tuple(excluded)) or _passing(node)
    if kind is None and isinstance(layer, _OTHER_CONVOLUTIONS):
        # Of several groups, or a subclass.
        return weighted.Fixed(f"a {type(layer).__name__}", f"it is a {type(layer).__name__} of another kind")
    description = f"a {type(layer).__name__}"
    if isinstance(layer, _OF_ALL_CHANNELS):
        description += ", whose mean and variance a channel that is zero changes too"
    return kind or _opaque(layer, description)


def _weighted(node: Any, excluded: tuple[str, ...]) -> Kind | None:
    layer = node.layer
    if is_depthwise_by_groups(layer):
        return None
    if type(layer) is _layers.Conv2D:
        return weighted.Grouped(excluded, layer.groups) if layer.groups > 1 else weighted.Convolution(excluded)
    if type(layer) in _OTHER_CONVOLUTIONS and layer.groups == 1:
        return weighted.OtherConvolution(excluded)
    if type(layer) is _layers.Dense:
        return weighted.Dense(excluded, on_vectors=len(node.input_shapes) == 2)
    if type(layer) in (_layers.SeparableConv1D, _layers.SeparableConv2D) and layer.depth_multiplier == 1:
        return weighted.Separable(excluded)
    if type(layer) in (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose):
        return weighted.Transposed(excluded)
    return None


def _passing(node: Any) -> Kind | None:
    layer = node.layer
    rank = len(node.input_shapes) if isinstance(node.input_shapes, tuple) else len(node.input_shapes[0])
    if type(layer) in (*_PASSING, *_ALSO_PASSING):
        return kinds.Passing(type(layer) in _PASSING)
    if type(layer) in (*_GLOBAL_POOLING, *_OTHER_GLOBAL_POOLING):
        return kinds.Passing(type(layer) in _GLOBAL_POOLING and not layer.keepdims)
    if type(layer) in (_layers.ZeroPadding1D, _layers.ZeroPadding2D, _layers.ZeroPadding3D):
        return kinds.ZeroPadding(type(layer) is _layers.ZeroPadding2D)
    if type(layer) in ACTIVATIONS:
        return kinds.Elementwise()
    if type(layer) is _layers.Rescaling and np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return kinds.Elementwise(known_to_kerassurgeon=False)
    if type(layer) is _layers.Rescaling and _is_per_channel(node):
        return per_channel.PerChannel()
    if type(layer) is _layers.BatchNormalization and is_channelwise_batch_norm(node):
        return kinds.BatchNorm()
    if type(layer) in (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D) and layer.depth_multiplier == 1:
        return per_channel.Depthwise()
    if is_depthwise_by_groups(layer):
        return per_channel.DepthwiseByGroups()
    if type(layer) is LayerScale:
        return per_channel.Scaled()
    if type(layer) is _layers.PReLU:
        return per_channel.Sloped()
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


def is_channelwise_batch_norm(node: Any) -> bool:
    """Return True for a batch norm that is an affine function of each channel in inference.

    Args:
        node: Keras' record of the call. With `training=True` it uses the statistics of the batch in inference too.
    """
    layer = node.layer
    if not isinstance(layer, _layers.BatchNormalization) or node.call_kwargs.get("training") is True:
        return False
    return list(layer.axis) == [len(node.output_shapes) - 1]


def is_depthwise_by_groups(layer: keras.layers.Layer) -> bool:
    """Return True for a Conv2D whose every output channel is made of the one input channel of the same number."""
    return type(layer) is _layers.Conv2D and 1 < layer.groups == layer.filters == layer.input_shape[-1]


def _has_widths(layer: keras.layers.Layer) -> bool:
    """True for a layer without weights whose options change with the number of channels."""
    is_rescaling_each = type(layer) is _layers.Rescaling and np.ndim(layer.scale) + np.ndim(layer.offset) > 0
    return type(layer) is _layers.Reshape or is_rescaling_each


def _is_per_channel(node: Any) -> bool:
    """True for a Rescaling by one number for each channel, or by one for all."""
    sizes = [np.shape(value) for value in (node.layer.scale, node.layer.offset)]
    return all(size in ((), (node.output_shapes[-1],)) for size in sizes)


def _keeps_channels_last(node: Any) -> bool:
    """True if a reshape leaves the last axis as it is, or flattens all axes to one."""
    before, after = node.input_shapes, node.output_shapes
    return before[-1] is not None and (after[-1] == before[-1] or (len(after) == 2 and after[-1] is not None))


def _opaque(layer: keras.layers.Layer, description: str) -> Kind:
    is_free = not layer.weights or type(layer).__name__ in _NORMALIZATIONS
    return kinds.Opaque(description, is_free)
