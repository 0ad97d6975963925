"""Replaces the layers that keras.applications defines for its own models, which no other program can load."""

from typing import Any

from resrep_dist.graph import CallInputs, copy_weights, nodes, rebuild
from resrep_dist.graph.application_layers import LayerScale, StochasticDepth

import numpy as np
from tensorflow import keras

_layers = keras.layers
# Layers whose kernel has the output channels on its last axis, and whose activations a flat model splits off.
_FOLDABLE = (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Dense)


def with_stock_layers(model: keras.Model) -> keras.Model:
    """Return a model with the same outputs in inference, of layers that every Keras has.

    A LayerScale is multiplied into the convolution or dense layer before it. Where there is none it becomes a
    Rescaling, whose numbers are not trained. A StochasticDepth is left out.

    Args:
        model: A flat functional model, which is not changed.

    Returns:
        A copy; the model itself if nothing has to be replaced.
    """
    if not any(isinstance(layer, LayerScale | StochasticDepth) for layer in model.layers):
        return model
    factors = _foldable_factors(model)
    folded = {name for name, _ in factors.values()}

    def replace(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if isinstance(layer, StochasticDepth) or layer.name in folded:
            return inputs.args[0]
        if isinstance(layer, LayerScale):
            clone = _layers.Rescaling(layer.gamma.numpy().tolist(), name=clone.name, dtype=layer.dtype_policy)
        return clone(*inputs.args, **inputs.kwargs)

    stock = rebuild(model, replace)
    copy_weights(model, stock)
    for name, (_, gamma) in factors.items():
        layer = stock.get_layer(name)
        layer.set_weights([weight * gamma for weight in layer.get_weights()])
    return stock


def _foldable_factors(model: keras.Model) -> dict[str, tuple[str, np.ndarray]]:
    """Return for each layer that only a LayerScale follows the name of the LayerScale and its factors, [C]."""
    calls = list(nodes(model))
    outputs = {str(id(tensor)) for tensor in model.outputs}
    uses: dict[str, int] = {}
    for node in calls:
        for key in node.flat_input_ids:
            uses[key] = uses.get(key, 0) + 1
    num_calls = {id(node.layer): sum(other.layer is node.layer for other in calls) for node in calls}
    maker: dict[str, Any] = {key: node.layer for node in calls for key in node.flat_output_ids}
    result = {}
    for node in calls:
        key = node.flat_input_ids[0]
        before: Any = maker.get(key)
        if not isinstance(node.layer, LayerScale) or type(before) not in _FOLDABLE or key in outputs:
            continue
        is_alone = uses[key] == num_calls[id(before)] == num_calls[id(node.layer)] == 1
        if is_alone and before.activation is keras.activations.linear:
            result[before.name] = (node.layer.name, node.layer.gamma.numpy())
    return result
