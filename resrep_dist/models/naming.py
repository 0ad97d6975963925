"""Numbers of layers without a name that do not depend on what else the process has built."""

import re

from resrep_dist.graph import flatten, rebuild

from tensorflow import keras

# Keras names a layer by its class and counts all layers of a process; `flatten` adds a suffix for what it splits off.
_SUFFIX = r"(?P<suffix>(?:_activation|_activity)?)"


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
    names = {}
    for key, found in numbered.items():
        for index, (_, name, base) in enumerate(sorted(found)):
            suffix = key.removeprefix(base)
            # The first input has the number 1, the first of all other layers none.
            number = index + 1 if base == "input" else index
            names[name] = f"{base}_{number}{suffix}" if number else f"{base}{suffix}"
    copy = rebuild(flat, names=names)
    for layer in flat.layers:
        if layer.weights:
            copy.get_layer(names.get(layer.name, layer.name)).set_weights(layer.get_weights())
    return copy


def _snake_case(name: str) -> str:
    # As Keras does.
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)).lower()
