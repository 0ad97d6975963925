"""Writes into an ONNX file how the model is used, as its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

USAGE_KEY = "usage"
"""Key of the whole usage as JSON."""


def write_usage(path: Path, usage: Mapping[str, Any]) -> None:
    """Write the usage of a model into the `metadata_props` of its ONNX file.

    It is there as a whole, as JSON under the key `usage`, and by single keys for programs that read no JSON.

    Args:
        path: The file, which is rewritten.
        usage: See `usage_of`.
    """
    import onnx

    model = onnx.load(str(path))
    add_properties(model, {USAGE_KEY: json.dumps(usage), **_single_keys(usage)})
    onnx.save(model, str(path))


def add_properties(model: Any, properties: Mapping[str, str]) -> None:
    """Add entries to the `metadata_props` of an ONNX model, and keep those with other keys.

    Args:
        model: An `onnx.ModelProto`, which is changed.
        properties: Values by their keys.
    """
    import onnx

    before = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**before, **properties})


def _single_keys(usage: Mapping[str, Any]) -> dict[str, str]:
    """Return texts as they are, and lists and numbers as JSON; what is not known is left out."""
    values = {**usage.get("pixels", {}), **{f"version_{name}": text for name, text in usage["versions"].items()}}
    values |= {name: usage.get(name) for name in ("outputs", "classes", "date", "command")}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }
