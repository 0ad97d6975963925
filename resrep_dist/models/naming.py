"""Numbers of layers without a name that do not depend on what else the process has built."""

import re
from collections.abc import Callable
from typing import Any

from resrep_dist.graph import flatten, rebuild

from tensorflow import keras

# Keras names a layer by its class and counts all layers of a process; `flatten` adds a suffix for what it splits off.
_SUFFIX = r"(?P<suffix>(?:_activation|_activity)?)"


# Class and name of each layer of the first model that a function built in this process, by function and arguments.
_first: dict[tuple[Any, ...], list[tuple[str, str]]] = {}


def with_first_names(model: keras.Model, function: Callable[..., Any], *arguments: Any) -> keras.Model:
    """Return a model with the names of the first one that a function built in this process.

    A function may count its calls, so that each of its models has other names.

    Args:
        model: What the function returned, a functional model.
        function: The function.
        *arguments: What it was called with.

    Returns:
        A flat copy; the model itself if its names are those, or its layers are others than those of the first one.
    """
    flat = flatten(model)
    layers = [(type(layer).__name__, layer.name) for layer in flat.layers]
    first = _first.setdefault((function, *arguments), layers)
    if first == layers or [kind for kind, _ in first] != [kind for kind, _ in layers]:
        return model
    return _renamed(flat, {name: before for (_, name), (_, before) in zip(layers, first, strict=True)})


def renumbered(model: keras.Model) -> keras.Model:
    """Return a flat copy of a model whose numbered layers count from the first one in the model.

    Their order stays that of their numbers, in which they were created.

    Args:
        model: A functional model.
    """
    flat = flatten(model)
    numbered: dict[str, list[tuple[int, str, str]]] = {}
    for layer in flat.layers:
        base = "input" if isinstance(layer, keras.layers.InputLayer) else _snake_case(type(layer).__name__)
        match = re.fullmatch(rf"(?P<base>{base}|tf\..*?)(?:_(?P<number>\d+))?{_SUFFIX}", layer.name)
        if match:
            number = int(match["number"] or 0)
            numbered.setdefault(match["base"] + match["suffix"], []).append((number, layer.name, match["base"]))
    names: dict[str, str] = {}
    for key, found in numbered.items():
        for index, (_, name, base) in enumerate(sorted(found)):
            suffix = key.removeprefix(base)
            # The first input has the number 1, the first of all other layers none.
            number = index + 1 if base == "input" else index
            names[name] = f"{base}_{number}{suffix}" if number else f"{base}{suffix}"
    return _renamed(flat, names)


def _renamed(flat: keras.Model, names: dict[str, str]) -> keras.Model:
    copy = rebuild(flat, names=names)
    for layer in flat.layers:
        if layer.weights:
            copy.get_layer(names.get(layer.name, layer.name)).set_weights(layer.get_weights())
    return copy


def _snake_case(name: str) -> str:
    # As Keras does.
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)).lower()
