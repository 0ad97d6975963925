"""Reads Keras files as plain data: the architecture's JSON and the arrays of every layer.

Reads `.keras` (a zip of JSON and HDF5), `.h5` and `.weights.h5`, written by Keras 2 or 3. This module does not import
Keras, no code in a file is run, and the arrays take no more memory than the file has bytes.
"""

import contextlib
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from resrep_dist.errors import ModelError, one_line

import h5py
import numpy as np

# Weights hardly compress and Keras does not compress them; a higher ratio is a file made to fill the memory.
_MAX_ZIP_RATIO = 20
# Ten times what the largest models of keras.applications need; as Python objects it takes several times as much.
_MAX_JSON_BYTES = 1 << 24


class Archive:
    """An open Keras file.

    Args:
        document: The architecture's JSON. None if the file holds weights alone.
        keras_version: Version of Keras that wrote the file.
        weights: The HDF5 file with the arrays.
        num_bytes: Maximum number of bytes of all arrays.
    """

    def __init__(self, document: dict[str, Any] | None, keras_version: str, weights: h5py.File, num_bytes: int) -> None:
        self.document = document
        """The architecture as Keras wrote it; None if the file holds weights alone."""
        self.is_keras_3 = keras_version.startswith("3")
        """True if Keras 3 wrote the file."""
        self._root = _get(weights, "model_weights", h5py.Group) if _has(weights, "model_weights") else weights
        self._bytes_left = num_bytes

    def arrays(
        self, layers: Sequence[tuple[str, str]], weighted: Set[str] | None = None
    ) -> dict[str, list[np.ndarray]]:
        """Read the arrays of all layers that have any, by the layer's name.

        Args:
            layers: (class name, layer name) of all layers of the model, in its order. The files of Keras 3 identify
                layers by class and position; they are read by name if the file has the names.
            weighted: Names of the layers with weights, whose names are needed for that. None for those of all layers.

        Raises:
            ModelError: If the arrays cannot be read or are larger than the file.
        """
        names = [name for _, name in layers]
        if not _has(self._root, "layers"):
            return {name: self._legacy_arrays(name) for name in self._legacy_names()}
        stored = _get(self._root, "layers", h5py.Group)
        keys = self._keys_by_name()
        is_by_name = keys.keys() >= set(names) if weighted is None else self.has_names(weighted)
        if not is_by_name:
            keys = dict(zip(names, _positions(layers), strict=True))
        found = {name: self._numbered_arrays(stored, key) for name, key in keys.items() if _has(stored, key)}
        return {name: arrays for name, arrays in found.items() if arrays}

    def has_names(self, weighted: Set[str]) -> bool:
        """Return True if `arrays` finds the layers by their names, False if by their order.

        Args:
            weighted: Names of all layers with weights.
        """
        if not _has(self._root, "layers"):
            return set(self._legacy_names()) == weighted
        stored = _get(self._root, "layers", h5py.Group)
        keys = self._keys_by_name()
        return {name for name, key in keys.items() if len(_get(stored, f"{key}/vars", h5py.Group))} == weighted

    def num_layers(self) -> int:
        """Return the number of layers in the file, with and without weights; an inner model is one."""
        if not _has(self._root, "layers"):
            return len(_list_attribute(self._root, "layer_names"))
        return len(_get(self._root, "layers", h5py.Group))

    def _keys_by_name(self) -> dict[str, str]:
        stored = _get(self._root, "layers", h5py.Group)
        return {name: key for key in stored if (name := _stored_name(stored, key)) is not None}

    def _legacy_names(self) -> list[str]:
        return [name for name in _list_attribute(self._root, "layer_names") if self._weight_names(name)]

    def _weight_names(self, layer: str) -> list[str]:
        return _list_attribute(_get(self._root, layer, h5py.Group), "weight_names")

    def _legacy_arrays(self, layer: str) -> list[np.ndarray]:
        group = _get(self._root, layer, h5py.Group)
        return [self._read(group, name) for name in self._weight_names(layer)]

    def _numbered_arrays(self, stored: h5py.Group, key: str) -> list[np.ndarray]:
        layer = _get(stored, key, h5py.Group)
        variables = _get(layer, "vars", h5py.Group) if _has(layer, "vars") else {}
        return [self._read(variables, str(index)) for index in range(len(variables))]

    def _read(self, group: h5py.Group, name: str) -> np.ndarray:
        dataset = _get(group, name, h5py.Dataset)
        if dataset.external or dataset.is_virtual:
            raise ModelError(f"its array {name} points to another file; save the model again with Keras")
        if dataset.dtype.kind not in "fiu":
            raise ModelError(f"its array {name} is {dataset.dtype}, expected numbers")
        # A chunk is unpacked as a whole, even if only a part of it is needed.
        self._bytes_left -= max(dataset.nbytes, math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize)
        if self._bytes_left < 0:
            raise ModelError("its arrays are larger than the file itself; save the model again with Keras")
        return np.asarray(dataset[()])


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a Keras file of any format; the format is that of its content, not of its name.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        ModelError: If the file or one of its arrays cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                document = _parse(_extract(file, "config.json", _MAX_JSON_BYTES))
                version = _parse(_extract(file, "metadata.json", _MAX_JSON_BYTES)).get("keras_version", "")
                weights = _extract(file, "model.weights.h5", _MAX_ZIP_RATIO * path.stat().st_size)
            with h5py.File(io.BytesIO(weights)) as hdf5:
                yield Archive(document, str(version), hdf5, len(weights))
        else:
            with h5py.File(path) as hdf5:
                text = _text_attribute(hdf5, "model_config")
                version = _text_attribute(hdf5, "keras_version") or ""
                yield Archive(_parse(text) if text is not None else None, version, hdf5, path.stat().st_size)
    except ModelError:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise ModelError(f"it is not a complete Keras file ({one_line(error)}); save or copy it again") from None
    except Exception as error:  # for a file of unknown origin the libraries may raise any error
        problem = one_line(error) or type(error).__name__
        raise ModelError(f"it is not a Keras file ({problem}); expected .keras, .h5 or .weights.h5") from None


def _extract(file: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    size = file.getinfo(name).file_size
    if size > max_bytes:
        raise ModelError(f"its {name} unpacks to {size} bytes, expected at most {max_bytes}")
    with file.open(name) as member:
        # The size in the directory of the zip may be wrong, so no more than that is read.
        return member.read(size)


def _parse(text: str | bytes) -> dict[str, Any]:
    if len(text) > _MAX_JSON_BYTES:
        raise ModelError(f"its architecture has {len(text)} bytes, expected at most {_MAX_JSON_BYTES}")
    try:
        document = json.loads(text)
    except RecursionError:
        raise ModelError("its architecture is nested too deeply; expected a Keras model") from None
    if not isinstance(document, dict):
        raise ModelError("its architecture is not a JSON object; save the model again with Keras")
    return document


def _get(group: h5py.Group, name: str, kind: type) -> Any:
    """Return a member of a group; links, which may lead to other files, are refused."""
    here = group
    for part in name.split("/"):
        if not isinstance(here, h5py.Group) or not isinstance(here.get(part, getlink=True), h5py.HardLink):
            raise ModelError(f"{name} is missing in it, or a link; save the model again with Keras")
        here = here[part]
    if not isinstance(here, kind):
        raise ModelError(f"{name} in it is not a {kind.__name__.lower()}; save the model again with Keras")
    return here


def _has(group: h5py.Group, name: str) -> bool:
    """Return True for a member or a link, which `_get` refuses; `in` would follow a link into another file."""
    return group.get(name, getlink=True) is not None


def _list_attribute(group: h5py.Group, name: str) -> list[str]:
    """Return a list of names, which Keras divides into attributes name0, name1 and so on if it is long."""
    if name in group.attrs:
        return [_text(entry) for entry in group.attrs[name]]
    keys = (f"{name}{index}" for index in range(len(group.attrs)))
    return [_text(entry) for key in keys if key in group.attrs for entry in group.attrs[key]]


def _text_attribute(group: h5py.Group, key: str) -> str | None:
    if key not in group.attrs:
        return None
    if group.attrs.get_id(key).shape != ():
        raise ModelError(f"its {key} is not text; save the model again with Keras")
    return _text(group.attrs[key])


def _stored_name(stored: h5py.Group, key: str) -> str | None:
    layer = _get(stored, key, h5py.Group)
    return _text_attribute(_get(layer, "vars", h5py.Group), "name") if _has(layer, "vars") else None


def _positions(layers: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names of layers in files of Keras 3: the class in snake case, with a number from the second on."""
    count: dict[str, int] = {}
    result = []
    for class_name, _ in layers:
        name = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)).lower()
        count[name] = count.get(name, -1) + 1
        result.append(f"{name}_{count[name]}" if count[name] else name)
    return result


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
