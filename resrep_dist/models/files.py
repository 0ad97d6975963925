"""Model files: written so that Keras 2 and Keras 3 can read them, and read without running code in them."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from resrep_dist.errors import ModelError, one_line
from resrep_dist.graph import stored_order
from resrep_dist.models.architecture import layers_of, rebuild_model
from resrep_dist.models.archive import open_archive
from resrep_dist.models.keras3 import make_readable_by_keras3, with_keras3_meaning
from resrep_dist.models.torch_weights import load_torch_weights

import numpy as np
from tensorflow import keras


def save_model(model: keras.Model, path: Path | str) -> None:
    """Save a model as HDF5, the format that both Keras 2 and Keras 3 can read.

    Args:
        model: The model; the state of its optimizer is not saved.
        path: The file, replaced at once when the new one is complete. Its folder is created if it does not exist.

    Raises:
        OSError: If the file cannot be written.
        ModelError: If a layer means something else in Keras 3 and cannot be replaced by one that does not.
    """
    model, path = with_keras3_meaning(model), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.h5")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
        model.save(partial, include_optimizer=False, save_format="h5")
    make_readable_by_keras3(partial)
    os.replace(partial, path)


def load_model(path: Path | str, open_size: int | None = None) -> keras.Model:
    """Load a functional or Sequential model of stock layers, with its weights, as a model of Keras 2.

    Args:
        path: A `.keras` or `.h5` file of Keras 2 or 3. No code in it is run, so it cannot be a SavedModel, which is a
            program.
        open_size: Height and width of the images, pixels, for an input that leaves them open. None to leave them open.

    Raises:
        ModelError: If the file is missing or damaged, or has code or other than stock layers.
    """
    path = Path(path)
    _require_file(path, f"model {path}")
    try:
        with open_archive(path) as archive:
            if archive.document is None:
                raise ModelError("it holds weights and no architecture; name it as `model.weights`")
            arrays = archive.arrays(layers_of(archive.document))
            shapes = {name: [array.shape for array in stored] for name, stored in arrays.items()}
            model = rebuild_model(archive.document, shapes, is_keras_3=archive.is_keras_3, open_size=open_size)
            _assign(model, arrays, [layer.name for layer in model.layers])
    except ModelError as error:
        raise _refusal(f"model {path}: {error}") from None
    return model


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, by which it is known again.

    Args:
        path: The file.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_weights(model: keras.Model, path: Path) -> None:
    """Load weights into a model. They are loaded only if all of them fit.

    Args:
        model: The model, changed in place.
        path: A Keras file (`.h5`, `.keras`, `.weights.h5`), whose layers are found by name if it has the names of all
            layers of the model with weights, otherwise by their order in the model that this one was rebuilt from, as
            Keras would. Or a `.safetensors` file, see `load_torch_weights`.

    Raises:
        ModelError: If the file is missing or damaged, or is of another model, or has neither the names nor an order
            that is known.
        UserError: If the file is `.safetensors` and the library safetensors is not installed.
    """
    _require_file(path, f"weights {path}")
    if path.suffix == ".safetensors":
        load_torch_weights(model, path)
        return
    try:
        with open_archive(path) as archive:
            order, weighted = stored_order(model), {layer.name for layer in model.layers if layer.weights}
            if not archive.has_names(weighted):
                _require_known_order(model, [name for _, name in order], archive.num_layers())
            _assign(model, archive.arrays(order, weighted), [name for _, name in order])
    except ModelError as error:
        raise _refusal(f"weights {path}: do not fit {model.name}: {error}") from None


def _require_file(path: Path, received: str) -> None:
    if not path.exists():
        raise ModelError(f"{received}: cannot be loaded, there is no such file")
    if (path / "saved_model.pb").exists():
        raise ModelError(
            f"{received}: it is a SavedModel, a program without an architecture that could be pruned; expected a "
            ".keras or .h5 file: load it in the Keras that wrote it, and save it by model.save('model.keras')"
        )
    # A pipe or a device may never end.
    if not path.is_file():
        raise ModelError(f"{received}: cannot be loaded, it is a folder, a pipe or a device; expected a file")


def _refusal(message: str) -> ModelError:
    # One line, since the message has names from the file.
    return ModelError(one_line(message, 600))


def _require_known_order(model: keras.Model, order: Sequence[str], num_stored: int) -> None:
    """Refuse a file without the names of a model whose layers have another order than in a file of Keras.

    It may be a file of that model or of the flat one, which have different numbers of layers.
    """
    own = [layer.name for layer in model.layers]
    weighted = {layer.name for layer in model.layers if layer.weights}
    is_one_order = [name for name in order if name in weighted] == [name for name in own if name in weighted]
    is_as_built = num_stored == len(order) != len(own)
    if not is_one_order and not is_as_built:
        raise ModelError(
            f"its layers lack the model's names, and the order of {num_stored} layers is not known: the model as built "
            f"has {len(order)}, taken apart {len(own)}; save the weights as .h5, with the model's names of layers"
        )


def _assign(model: keras.Model, arrays: Mapping[str, Sequence[np.ndarray]], order: Sequence[str]) -> None:
    """Set the weights of all layers by name, or in an order of names if the file has others."""
    layers = [layer for layer in model.layers if layer.weights]
    weighted = {layer.name for layer in layers}
    if weighted != arrays.keys():
        if len(layers) != len(arrays):
            raise ModelError(f"the file has weights for {len(arrays)} layers, the model has {len(layers)} with weights")
        arrays = dict(zip([name for name in order if name in weighted], arrays.values(), strict=True))
    for layer in layers:
        expected = [tuple(weight.shape) for weight in layer.weights]
        found = [array.shape for array in arrays[layer.name]]
        if expected != found:
            raise ModelError(f"layer {layer.name} has weights of shapes {expected}, the file holds {found}")
    for layer in layers:
        layer.set_weights(arrays[layer.name])
