"""Models and weights on disk: written so that Keras 2 and Keras 3 read them, read without running them."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from resrep_dist.errors import ModelError, one_line
from resrep_dist.models.architecture import layers_of, rebuild_model
from resrep_dist.models.archive import open_archive
from resrep_dist.models.keras3 import make_readable_by_keras3
from resrep_dist.models.torch_weights import load_torch_weights

import numpy as np
from tensorflow import keras


def save_model(model: keras.Model, path: Path) -> None:
    """Save as HDF5, the format that Keras 2 and Keras 3 both read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.h5")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
        model.save(partial, include_optimizer=False, save_format="h5")
    make_readable_by_keras3(partial)
    os.replace(partial, path)


def load_model(path: Path, open_size: int | None = None) -> keras.Model:
    """Load a functional or Sequential model of stock layers (`.keras` or `.h5`, of Keras 2 or 3).

    Args:
        open_size: height and width, in pixels, of the input where the file leaves them open.

    Raises:
        ModelError: for a damaged file, and for code or anything but stock layers in it; none of it is run.
    """
    _require_file(path, f"model {path}")
    try:
        with open_archive(path) as archive:
            if archive.document is None:
                raise ModelError("it holds weights and no architecture; name it as `model.weights`")
            arrays = archive.arrays(layers_of(archive.document))
            shapes = {name: [array.shape for array in stored] for name, stored in arrays.items()}
            model = rebuild_model(archive.document, shapes, is_keras_3=archive.is_keras_3, open_size=open_size)
            _assign(model, arrays)
    except ModelError as error:
        raise _refusal(f"model {path}: {error}") from None
    return model


def load_weights(model: keras.Model, path: Path) -> None:
    """Load the weights in a Keras file (`.h5`, `.keras`, `.weights.h5`) or a `.safetensors` into a model.

    By name where the file has all the model's layers, otherwise in order, as Keras does. Nothing is loaded
    unless all of it fits.

    Raises:
        ModelError: for a damaged file or one of another model.
    """
    _require_file(path, f"weights {path}")
    if path.suffix == ".safetensors":
        load_torch_weights(model, path)
        return
    try:
        with open_archive(path) as archive:
            arrays = archive.arrays([(type(layer).__name__, layer.name) for layer in model.layers])
            _assign(model, arrays)
    except ModelError as error:
        raise _refusal(f"weights {path}: do not fit {model.name}: {error}") from None


def _require_file(path: Path, received: str) -> None:
    if not path.exists():
        raise ModelError(f"{received}: cannot be loaded, there is no such file")
    # A pipe or a device may never end.
    if not path.is_file():
        raise ModelError(f"{received}: cannot be loaded, it is a folder, a pipe or a device; expected a file")


def _refusal(message: str) -> ModelError:
    # Names from the file are in it.
    return ModelError(one_line(message, 600))


def _assign(model: keras.Model, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    layers = [layer for layer in model.layers if layer.weights]
    if {layer.name for layer in layers} != arrays.keys():
        if len(layers) != len(arrays):
            raise ModelError(f"the file has weights for {len(arrays)} layers, the model has {len(layers)} with weights")
        arrays = {layer.name: stored for layer, stored in zip(layers, arrays.values(), strict=True)}
    for layer in layers:
        expected = [tuple(weight.shape) for weight in layer.weights]
        found = [array.shape for array in arrays[layer.name]]
        if expected != found:
            raise ModelError(f"layer {layer.name} has weights of shapes {expected}, the file holds {found}")
    for layer in layers:
        layer.set_weights(arrays[layer.name])
