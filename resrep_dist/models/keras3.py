"""Makes files of Keras 2 models that Keras 3 reads too, with the same meaning.

Tried with all layers and activations that a file may hold: only those of `with_keras3_meaning` mean something else.
"""

import json
from pathlib import Path
from typing import Any

from resrep_dist.errors import ModelError
from resrep_dist.graph import CallInputs, copy_weights, flatten, rebuild

import h5py
from tensorflow import keras

_layers = keras.layers

# Options that Keras 2 writes and that the class of Keras 3 refuses; none of them changes the outputs.
_OF_SEPARABLE = ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
_UNKNOWN_TO_KERAS_3 = {
    "DepthwiseConv1D": ("groups",),
    "DepthwiseConv2D": ("groups",),
    "SeparableConv1D": _OF_SEPARABLE,
    "SeparableConv2D": _OF_SEPARABLE,
    "Conv1DTranspose": ("groups",),
    "Conv2DTranspose": ("groups",),
    "Conv3DTranspose": ("groups",),
    "SpatialDropout1D": ("trainable", "noise_shape"),
    "SpatialDropout2D": ("trainable", "noise_shape"),
    "SpatialDropout3D": ("trainable", "noise_shape"),
}


def with_keras3_meaning(model: keras.Model) -> keras.Model:
    """Return a model of layers that compute the same in Keras 3.

    Keras 3 has another `hard_sigmoid` and no ThresholdedReLU.

    Args:
        model: A functional model, which is not changed.

    Returns:
        A copy with equal weights; the model itself if nothing has to be replaced.

    Raises:
        ModelError: If a layer means something else in Keras 3 and cannot be replaced, or two layers would have one name
            in the file.
    """
    _require_own_names(model)
    if not any(map(_means_something_else, model._flatten_layers())):
        return model
    replaced: dict[int, list[keras.layers.Layer]] = {}

    def replace(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if not _means_something_else(clone):
            return clone(*inputs.args, **inputs.kwargs)
        # A layer that is called several times is replaced once.
        if id(layer) not in replaced:
            replaced[id(layer)] = _replacement(clone)
        outputs = inputs.args[0]
        for part in replaced[id(layer)]:
            outputs = part(outputs)
        return outputs

    flat = flatten(model)
    result = rebuild(flat, replace)
    copy_weights(flat, result)
    return result


def _require_own_names(model: keras.Model) -> None:
    """Check that layers of a model, or of a model inside of it, have names of their own in a file."""
    names: dict[str, str] = {}
    for layer in model.layers:
        if (other := names.setdefault(name_in_file(layer.name), layer.name)) != layer.name:
            raise ModelError(
                f"layers {other} and {layer.name}: both are {name_in_file(layer.name)} in a file, since Keras 3 allows "
                "no / in names; give one of them another name"
            )
        if isinstance(layer, keras.Model):
            _require_own_names(layer)


def _means_something_else(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, _layers.LayerNormalization):
        # Keras 3 does not read weights of several axes.
        return isinstance(layer.axis, list | tuple) and len(layer.axis) > 1
    is_hard = getattr(layer, "activation", None) is keras.activations.hard_sigmoid
    return is_hard or isinstance(layer, _layers.ThresholdedReLU)


def _replacement(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    if isinstance(layer, _layers.ThresholdedReLU):
        return [_layers.ReLU(threshold=float(layer.theta), name=layer.name)]
    if type(layer) is _layers.Activation:
        # Keras 2: 0.2 x + 0.5, from 0 to 1.
        return [_layers.Rescaling(0.2, offset=0.5, name=f"{layer.name}_scale"), _layers.ReLU(1.0, name=layer.name)]
    if isinstance(layer, _layers.LayerNormalization):
        raise ModelError(
            f"layer {layer.name}: a LayerNormalization of several axes cannot be read by Keras 3; normalize one axis"
        )
    raise ModelError(
        f"layer {layer.name}: the hard_sigmoid in a {type(layer).__name__} is another function in Keras 3; put it into "
        "a layer of its own, keras.layers.Activation('hard_sigmoid')"
    )


def name_in_file(name: str) -> str:
    """Return the name that a layer has in written files: Keras 3 allows no `/` in it.

    Args:
        name: The name of the layer in the model that is written.
    """
    return name.replace("/", "_")


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
            if name_in_file(name) != name:
                weights.move(name, name_in_file(name))
        weights.attrs[key] = [name_in_file(name).encode() for name in names]


def _changed(value: Any) -> Any:
    """Return a configuration with plain names of layers, also in the references of their calls."""
    if isinstance(value, list):
        # A call's input: [layer, call, tensor, further arguments].
        if len(value) == 4 and isinstance(value[0], str) and isinstance(value[3], dict):
            return [name_in_file(value[0]), *value[1:3], _changed(value[3])]
        # An input or output of the model: [layer, call, tensor].
        if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [name_in_file(value[0]), *value[1:]]
        return [_changed(item) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _changed(item) for key, item in value.items()}
    if isinstance(changed.get("name"), str):
        changed["name"] = name_in_file(changed["name"])
    for key in _UNKNOWN_TO_KERAS_3.get(str(changed.get("class_name")), ()):
        changed["config"].pop(key, None)
    return changed
