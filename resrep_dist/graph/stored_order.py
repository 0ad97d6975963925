"""The order in which Keras stores the layers of a model in a file, which a flat copy no longer has.

Keras orders layers by their distance from the outputs. An activation that becomes a layer of its own makes a branch
longer, so the layers of parallel branches may change places.
"""

import weakref
from collections.abc import Iterator, Mapping

from tensorflow import keras

# By model, so that nothing is tracked by Keras and saved with it.
_orders: weakref.WeakKeyDictionary[keras.Model, list[tuple[str, str]]] = weakref.WeakKeyDictionary()


def stored_order(model: keras.Model) -> list[tuple[str, str]]:
    """Return (class name, layer name) of all layers in the order of the model that `model` was rebuilt from.

    Args:
        model: A functional model. If it is a copy, however often rebuilt, the order is that of the first model, with
            the names that its layers have in `model`; layers of inner models are in the place of their model.
    """
    return _orders[model] if model in _orders else _own_order(model, {})


def remember_order(copy: keras.Model, model: keras.Model, names: Mapping[int, str]) -> None:
    """Record for `stored_order` what a model was rebuilt from.

    Args:
        copy: The rebuilt model.
        model: What it was rebuilt from.
        names: The names in the copy of the layers of `model`, by the id of the layer.
    """
    if model in _orders:
        renamed = {layer.name: names[id(layer)] for layer in model.layers if id(layer) in names}
        _orders[copy] = [(kind, renamed.get(name, name)) for kind, name in _orders[model]]
    else:
        _orders[copy] = _own_order(model, names)


def _own_order(model: keras.Model, names: Mapping[int, str]) -> list[tuple[str, str]]:
    # A layer that an inner model shares counts once.
    layers = {id(layer): layer for layer in _all_layers(model)}
    return [(type(layer).__name__, names.get(key, layer.name)) for key, layer in layers.items()]


def _all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            # A flat copy has no inputs of inner models, and their names may be those of other layers.
            yield from (inner for inner in _all_layers(layer) if not isinstance(inner, keras.layers.InputLayer))
        else:
            yield layer
