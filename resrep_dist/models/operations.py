"""Operations of Keras 3 in a model file (`x + y`, `keras.ops.relu(x)`) as layers that both versions of Keras have."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_Options = dict[str, Any]
# Class of an operation on one tensor: class of the layer, and its options made of the operation's.
_OF_ONE: dict[str, Callable[[Mapping[str, Any]], tuple[str, _Options] | None]] = {
    "Negative": lambda options: ("Rescaling", {"scale": -1.0}),
    "Relu": lambda options: ("ReLU", {}),
    "Relu6": lambda options: ("ReLU", {"max_value": 6.0}),
    "LeakyRelu": lambda options: ("LeakyReLU", {"alpha": options.get("negative_slope", 0.2)}),
    "Elu": lambda options: ("ELU", {"alpha": options.get("alpha", 1.0)}),
    "Softmax": lambda options: ("Softmax", {"axis": options.get("axis", -1)}),
    # Approximate unless it is said; Keras 2 has no such activation.
    "Gelu": lambda options: None if options.get("approximate", True) else ("Activation", {"activation": "gelu"}),
    "Concatenate": lambda options: ("Concatenate", {"axis": options.get("axis", 0)}),
    **{
        name: (lambda activation: lambda options: ("Activation", {"activation": activation}))(name.lower())
        for name in ("Sigmoid", "Tanh", "Silu", "Selu", "Softplus", "Softsign")
    },
}
# In files without modules these are layers already, with the same meaning.
_ALSO_LAYERS = ("Softmax", "Concatenate")
_JOINS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
_QUOTIENTS = ("Divide", "TrueDivide")
_POOLINGS = {"Mean": "Average", "Max": "Max"}


def operations_as_layers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's document in which layers take the place of operations that compute the same.

    Args:
        document: The architecture's JSON. Operations without such a layer stay as they are.
    """
    config = document.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("layers"), list):
        return dict(document)
    entries = [_as_layer(entry) if _is_operation(entry) else entry for entry in config["layers"]]
    return {**document, "config": {**config, "layers": entries}}


def _is_operation(entry: Any) -> bool:
    """Return True for an operation with one call; in `.h5` files only its arguments tell it from a layer."""
    nodes = entry.get("inbound_nodes") if isinstance(entry, dict) else None
    if not isinstance(nodes, list) or len(nodes) != 1 or not isinstance(nodes[0], dict):
        return False
    module = entry.get("module")
    is_named = isinstance(module, str) and module.startswith("keras.src.ops.")
    has_values = all(value is None for value in nodes[0].get("kwargs", {}).values())
    return has_values and isinstance(nodes[0].get("args"), list) and (is_named or module is None)


def _as_layer(entry: dict[str, Any]) -> dict[str, Any]:
    arguments, name = entry["inbound_nodes"][0]["args"], entry["class_name"]
    found = None
    if len(arguments) == 1 and name in _POOLINGS and _is_tensor(arguments[0]):
        found = _global_pooling(_POOLINGS[name], _shape(arguments[0]), entry["config"])
    elif len(arguments) == 1 and name in _OF_ONE and (name not in _ALSO_LAYERS or "module" in entry):
        found = _OF_ONE[name](entry["config"])
    elif len(arguments) == 2 and name in (*_JOINS, *_QUOTIENTS):
        found, arguments = _of_two(name, *arguments)
    if found is None:
        return entry
    layer, options = found
    return {
        "module": "keras.layers",
        "class_name": layer,
        "registered_name": None,
        "name": entry.get("name"),
        "config": {"name": entry["config"].get("name", entry.get("name")), **options},
        "inbound_nodes": [{"args": arguments, "kwargs": {}}],
    }


def _of_two(name: str, first: Any, second: Any) -> tuple[tuple[str, _Options] | None, list[Any]]:
    if _is_tensor(first) and _is_tensor(second):
        # Layers broadcast like NumPy only over tensors of the same rank.
        is_layer = name in _JOINS and len(_shape(first)) == len(_shape(second))
        return ((name, {}) if is_layer else None), [[first, second]]
    tensor, value, is_first = (first, second, True) if _is_tensor(first) else (second, first, False)
    number = _number(value, _shape(tensor)) if _is_tensor(tensor) else None
    if number is None:
        return None, []
    found: tuple[str, _Options] | None = None
    if name == "Add":
        found = ("Rescaling", {"scale": 1.0, "offset": number.tolist()})
    elif name == "Subtract":
        signs = (1.0, -number) if is_first else (-1.0, number)
        found = ("Rescaling", {"scale": signs[0], "offset": signs[1].tolist()})
    elif name == "Multiply":
        found = ("Rescaling", {"scale": number.tolist()})
    elif name in _QUOTIENTS and is_first and np.all(number):
        found = ("Rescaling", {"scale": (1.0 / number).tolist()})
    elif name == "Maximum" and number.ndim == 0 and not number:
        found = ("ReLU", {})
    return found, [tensor]


def _global_pooling(kind: str, shape: list[Any], options: Mapping[str, Any]) -> tuple[str, _Options] | None:
    rank, axes = len(shape), options.get("axis")
    given = axes if isinstance(axes, list) else [axes]
    if not 3 <= rank <= 5 or not all(isinstance(axis, int) for axis in given):
        return None
    if sorted(axis % rank for axis in given) != list(range(1, rank - 1)):
        return None
    return f"Global{kind}Pooling{rank - 2}D", {"keepdims": bool(options.get("keepdims", False))}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _shape(tensor: Mapping[str, Any]) -> list[Any]:
    return list(tensor["config"]["shape"])


def _number(value: Any, shape: list[Any]) -> np.ndarray | None:
    """Return a number, or one for each channel; None for other values."""
    if isinstance(value, dict) and value.get("class_name") in ("__numpy__", "__tensor__"):
        value = value.get("config", {}).get("value")
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.ndim == 0 or array.shape == (shape[-1],) else None
