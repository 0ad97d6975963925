"""Names of the inputs and outputs of a model."""

from collections.abc import Sequence
from typing import Any

from tensorflow import keras


def names_of_inputs(model: keras.Model) -> list[str]:
    """Return a name for each of `model.inputs`: its key if they are a dict, otherwise that of its layer."""
    return _names(model._nested_inputs, model.input_names)


def names_of_outputs(model: keras.Model) -> list[str]:
    """Return a name for each of `model.outputs`: its key if they are a dict, otherwise that of its layer."""
    return _names(model._nested_outputs, model.output_names)


def _names(structure: Any, of_layers: Sequence[str]) -> list[str]:
    # Keras has the values of a dict in the order of its sorted keys.
    return sorted(structure) if isinstance(structure, dict) else list(of_layers)
