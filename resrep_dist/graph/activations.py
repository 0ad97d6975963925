"""Activations inside of layers: which of them are layers of their own in a flat model, where they can be traced."""

from collections.abc import Collection

from tensorflow import keras

_layers = keras.layers
_WITH_ACTIVATION = (
    _layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Conv1DTranspose, _layers.Conv2DTranspose,
    _layers.Conv3DTranspose, _layers.DepthwiseConv1D, _layers.DepthwiseConv2D, _layers.SeparableConv1D,
    _layers.SeparableConv2D, _layers.Dense,
)  # fmt: skip


def layers_at_ends(model: keras.Model) -> frozenset[int]:
    """Return the ids of the layers, in inner models too, that make the outputs of a model.

    Args:
        model: A functional model.
    """
    result = set()
    for tensor in model.outputs:
        # Other inner models, which are subclassed, are refused when the model is rebuilt.
        while getattr(tensor.node.layer, "_is_graph_network", False):
            index = tensor.node.flat_output_ids.index(str(id(tensor)))
            tensor = tensor.node.layer.outputs[index]
        result.add(id(tensor.node.layer))
    return frozenset(result)


def has_activation_to_split(layer: keras.layers.Layer, ends: Collection[int]) -> bool:
    """Return True for a layer whose activation becomes a layer of its own.

    A softmax stays in a layer that makes an output: no channel of an output goes, and files have it as users wrote it.
    Inside of a network it mixes channels, which the trace finds where it is a layer.

    Args:
        layer: A layer.
        ends: What `layers_at_ends` returned for the model.
    """
    if type(layer) not in _WITH_ACTIVATION or layer.activation in (keras.activations.linear, None):
        return False
    return layer.activation is not keras.activations.softmax or id(layer) not in ends


def has_activity_to_move(layer: keras.layers.Layer, ends: Collection[int]) -> bool:
    """Return True for an activity regularizer that the copy of a layer would lose, or apply before the activation.

    Args:
        layer: A layer.
        ends: What `layers_at_ends` returned for the model.
    """
    if getattr(layer, "activity_regularizer", None) is None or isinstance(layer, _layers.ActivityRegularization):
        return False
    return has_activation_to_split(layer, ends) or "activity_regularizer" not in layer.get_config()
