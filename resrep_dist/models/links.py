"""Reads how the layers in a Keras file are linked, and calls them on each other."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from resrep_dist.errors import ModelError, one_line

from tensorflow import keras

FIX = "rebuild the model with stock layers, or train it from a program by resrep_dist.Trainer, which needs no file"
"""What a user can do about a model that is refused."""


class Call(NamedTuple):
    """One call of a layer."""

    layer: str
    """Name of the layer."""
    number: int
    """Which of the layer's calls it is."""
    inputs: list[tuple[str, int]]
    """The calls, (layer, number), whose outputs it is called on."""
    options: dict[str, bool]
    """Arguments besides the inputs."""


def entry_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a layer.

    Args:
        entry: The layer in the document.
    """
    # A layer that is not a stock layer may have no name in its configuration.
    return str(entry["config"].get("name", entry.get("name", "without a name")))


def chain(
    entries: list[dict[str, Any]], config: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[tuple[str, int]], list[tuple[str, int]]]:
    """Return the layers of a Sequential model as those of a functional one, with its inputs and outputs.

    Args:
        entries: The layers in the document.
        config: The model's configuration in the document.

    Returns:
        The layers, starting with an InputLayer, each with its `inbound_nodes`; the inputs and the outputs of the model
        as (layer, call).

    Raises:
        ModelError: If the model has no input shape.
    """
    if entries and entries[0]["class_name"] != "InputLayer":
        shape = entries[0]["config"].get("batch_input_shape") or config.get("build_input_shape")
        first = {
            "class_name": "InputLayer",
            "config": {"name": f"{entry_name(entries[0])}_input", "batch_shape": shape},
        }
        entries = [first, *entries]
    if len(entries) < 2 or not entries[0]["config"].get("batch_shape", entries[0]["config"].get("batch_input_shape")):
        raise ModelError("it is a Sequential model without an input shape; give its first layer one and save again")
    linked = [
        {**entry, "inbound_nodes": [[[entry_name(before), 0, 0, {}]]]} for before, entry in itertools.pairwise(entries)
    ]
    return [{**entries[0], "inbound_nodes": []}, *linked], [(entry_name(entries[0]), 0)], [(entry_name(entries[-1]), 0)]


def calls_of(entry: Mapping[str, Any]) -> list[Call]:
    """Return the calls of a layer.

    Args:
        entry: The layer in the document, as written by Keras 2 or 3.

    Raises:
        ModelError: If it is called on anything but tensors, or with options other than `training`.
    """
    return [_call(entry, index, node) for index, node in enumerate(entry["inbound_nodes"])]


def _call(entry: Mapping[str, Any], index: int, node: Any) -> Call:
    """Read one call of a layer as written by Keras 2 (lists) or Keras 3 (args and kwargs)."""
    if isinstance(node, dict):
        (argument,) = node["args"] if len(node["args"]) == 1 else [None]
        tensors = argument if isinstance(argument, list) else [argument]
        if not all(isinstance(t, dict) and t.get("class_name") == "__keras_tensor__" for t in tensors):
            raise ModelError(f"layer {entry_name(entry)} is called on more than tensors; {FIX}")
        references = [t["config"]["keras_history"] for t in tensors]
        # Keras 3 writes the mode in which the model was built, which has no effect when the model is called.
        options = {key: value for key, value in node["kwargs"].items() if key != "training"}
    else:
        references = [part[:3] for part in node]
        options = {key: value for part in node for key, value in (part[3] if len(part) > 3 else {}).items()}
    options = {key: value for key, value in options.items() if value is not None}
    if any(key != "training" or not isinstance(value, bool) for key, value in options.items()):
        raise ModelError(f"layer {entry_name(entry)} is called with {', '.join(options)}; {FIX}")
    return Call(entry_name(entry), index, read_references(references), options)


def read_references(value: Any) -> list[tuple[str, int]]:
    """Read tensors written as [layer, call, output], or a single one.

    Args:
        value: The tensors in the document.

    Returns:
        The (layer, call) of each tensor.

    Raises:
        ModelError: If they are written otherwise.
    """
    listed = [value] if value and isinstance(value[0], str) else value
    for reference in listed:
        if len(reference) != 3 or not isinstance(reference[0], str) or reference[2] != 0:
            raise ModelError(f"its layers are not linked as Keras does: {reference!r}; save it again with Keras"[:300])
    return [(name, int(call)) for name, call, _ in listed]


def known_reference(reference: tuple[str, int], tensors: Mapping[tuple[str, int], Any]) -> tuple[str, int]:
    """Return a reference after checking that it has a tensor.

    Args:
        reference: (layer, call).
        tensors: The outputs of the calls, by (layer, call).

    Raises:
        ModelError: If it has none.
    """
    if reference not in tensors:
        raise ModelError(f"its layer {reference[0]} is missing or part of a cycle; save the model again with Keras")
    return reference


def call_layers(
    layers: Mapping[str, keras.layers.Layer], calls: list[Call], tensors: dict[tuple[str, int], Any]
) -> None:
    """Call the layers in an order in which their inputs are known.

    Args:
        layers: The layers by name.
        calls: Their calls in any order.
        tensors: The inputs of the model, by (layer, call). The outputs of the calls are added.

    Raises:
        ModelError: If a layer cannot be called, or its input is missing or part of a cycle.
    """
    while calls:
        waiting = []
        for call in calls:
            if not all(reference in tensors for reference in call.inputs):
                waiting.append(call)
                continue
            inputs = [tensors[reference] for reference in call.inputs]
            try:
                output = layers[call.layer](inputs[0] if len(inputs) == 1 else inputs, **call.options)
            except ModelError as error:
                raise ModelError(f"layer {call.layer}: {error}") from None
            except Exception as error:  # with options of unknown origin a layer may raise any error
                raise ModelError(f"layer {call.layer}: it cannot be called ({one_line(error)}); {FIX}") from None
            tensors[call.layer, call.number] = output
        if len(waiting) == len(calls):
            known_reference(next(reference for reference in waiting[0].inputs if reference not in tensors), tensors)
        calls = waiting
