"""Changes HDF5 model files that Keras 2 has written so that Keras 3 can read them too."""

import json
from pathlib import Path
from typing import Any

import h5py

# Options that Keras 2 writes and that the class of Keras 3 refuses; none of them changes the outputs.
_UNKNOWN_TO_KERAS_3 = {
    "DepthwiseConv2D": ("groups",),
    "SeparableConv2D": ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"),
    "Conv2DTranspose": ("groups",),
    "SpatialDropout2D": ("trainable", "noise_shape"),
}


def make_readable_by_keras3(path: Path) -> None:
    """Change the architecture in a model file so that Keras 3 can read it; the weights stay as they are.

    Keras 2 writes options that Keras 3 refuses, such as `groups` of a DepthwiseConv2D, and allows `/` in names.

    Args:
        path: An HDF5 file of Keras 2, changed in place.

    Raises:
        OSError: If the file cannot be changed.
    """
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(_changed(config)).encode()
        _rename_groups(file["model_weights"])


def _rename_groups(weights: h5py.Group) -> None:
    """Rename the groups of arrays as the layers."""
    # A long list of names is spread over several attributes.
    for key in [key for key in weights.attrs if key.startswith("layer_names")]:
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in weights.attrs[key]]
        # `a/b/c` before `a/b`, with which it would be moved.
        for name in sorted(names, key=len, reverse=True):
            if _plain(name) != name:
                weights.move(name, _plain(name))
        weights.attrs[key] = [_plain(name).encode() for name in names]


def _changed(value: Any) -> Any:
    """Return a configuration with plain names of layers, also in the references of their calls."""
    if isinstance(value, list):
        # A call's input: [layer, call, tensor, further arguments].
        if len(value) == 4 and isinstance(value[0], str) and isinstance(value[3], dict):
            return [_plain(value[0]), *value[1:3], _changed(value[3])]
        # An input or output of the model: [layer, call, tensor].
        if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [_plain(value[0]), *value[1:]]
        return [_changed(item) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _changed(item) for key, item in value.items()}
    if isinstance(changed.get("name"), str):
        changed["name"] = _plain(changed["name"])
    for key in _UNKNOWN_TO_KERAS_3.get(str(changed.get("class_name")), ()):
        changed["config"].pop(key, None)
    return changed


def _plain(name: str) -> str:
    return name.replace("/", "_")
