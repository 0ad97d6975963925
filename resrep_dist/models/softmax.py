"""Finds and removes a softmax or a sigmoid at the end of a model, in whatever form it is there."""

from typing import Any

from resrep_dist.graph import CallInputs, copy_weights, flatten, rebuild
from resrep_dist.graph.operators import operator_as_layer

from tensorflow import keras

_layers = keras.layers
# Layers that may follow it and only move its values, or do nothing in inference.
_MOVING = (_layers.Reshape, _layers.Flatten, _layers.Dropout, _layers.ActivityRegularization)


def ends_in_softmax(model: keras.Model) -> bool:
    """Return True if the outputs of a model are those of a softmax over its classes."""
    return _last(model, "softmax") is not None


def ends_in_sigmoid(model: keras.Model) -> bool:
    """Return True if each output of a model is that of a sigmoid."""
    return _last(model, "sigmoid") is not None


def ends_in_probabilities(model: keras.Model) -> bool:
    """Return True if the outputs of a model are those of a softmax or a sigmoid, False for logits."""
    return ends_in_softmax(model) or ends_in_sigmoid(model)


def without_softmax(model: keras.Model) -> keras.Model:
    """Return a model without its softmax; the model itself if it has none at its end.

    Args:
        model: A functional model; the result is a flat copy with equal weights.
    """
    flat = flatten(model)
    last = _last(flat, "softmax")
    return model if last is None else _without(flat, last)


def with_logits(model: keras.Model) -> keras.Model:
    """Return a model without the softmax or sigmoid at each of its ends; the model itself if it has none.

    Args:
        model: As in `without_softmax`; it may have several outputs.
    """
    flat = flatten(model)
    found = (_last_before(output, name) for output in flat.outputs for name in ("softmax", "sigmoid"))
    # Where another layer takes the values too, it stays.
    ends = [last for last in found if last is not None and _is_only_for_outputs(last, flat)]
    return _without(flat, *ends) if ends else model


def _is_only_for_outputs(layer: keras.layers.Layer, model: keras.Model) -> bool:
    """Return True if the values of a layer of a flat model reach one of its outputs and no other layer."""
    if len(model.outputs) == 1:
        return True
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    called = [node for node in nodes if node.layer is layer]
    takers = [node for node in nodes if any(tensor.node.layer is layer for tensor in node.keras_inputs)]
    return len(called) == 1 and all(_is_moving(taker.layer) for taker in takers)


def _without(model: keras.Model, *ends: keras.layers.Layer) -> keras.Model:
    def linear(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if all(layer is not end for end in ends):
            return clone(*inputs.args, **inputs.kwargs)
        if not layer.weights:
            return inputs.args[0]
        clone = layer.__class__.from_config({**clone.get_config(), "activation": "linear"})
        return clone(*inputs.args, **inputs.kwargs)

    result = rebuild(model, linear)
    copy_weights(model, result)
    return result


def _last(model: keras.Model, function: str) -> keras.layers.Layer | None:
    """Return the layer at the end of a model with one output that is, or ends in, a softmax or a sigmoid."""
    return _last_before(model.outputs[0], function) if len(model.outputs) == 1 else None


def _last_before(tensor: Any, function: str) -> keras.layers.Layer | None:
    """Return the same for the end of a model that an output is."""
    num_classes = tensor.shape[-1]
    while not tensor.node.is_input:
        layer = tensor.node.layer
        if isinstance(layer, keras.Model):
            return _last(layer, function)
        if _is(layer, tensor.node, function):
            return layer if tensor.shape[-1] == num_classes else None
        if not _is_moving(layer):
            return None
        tensor = tensor.node.keras_inputs[0]
    return None


def _is_moving(layer: keras.layers.Layer) -> bool:
    """Return True for a layer that leaves the values of its one input as they are in inference."""
    if type(layer).__name__ == "TFOpLambda":
        return layer.get_config()["function"] in ("cast", "identity")
    is_linear = type(layer) is _layers.Activation and layer.activation is keras.activations.linear
    return is_linear or isinstance(layer, _MOVING)


def _is(layer: keras.layers.Layer, node: Any, function: str) -> bool:
    layer = operator_as_layer(node) or layer
    if isinstance(layer, _layers.Softmax) and function == "softmax":
        return layer.axis in (-1, len(node.output_shapes) - 1)
    activation = getattr(layer, "activation", None)
    # TensorFlow's own function is another object than Keras' one.
    is_stock = str(getattr(activation, "__module__", "")).startswith(("tensorflow.", "keras.", "tf_keras."))
    return (
        is_stock
        and getattr(activation, "__name__", "")
        in {
            "softmax": ("softmax", "softmax_v2"),
            "sigmoid": ("sigmoid", "hard_sigmoid"),
        }[function]
    )
