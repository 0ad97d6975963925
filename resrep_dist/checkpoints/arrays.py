"""Reads the arrays of a checkpoint, if their headers say that they fit the variables."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrep_dist.errors import CheckpointError, one_line

import numpy as np

if TYPE_CHECKING:
    # Only for annotations: reading needs no TensorFlow.
    import tensorflow as tf


def read_arrays(path: Path, variables: Mapping[str, "tf.Variable"], is_whole: bool) -> dict[str, np.ndarray]:
    """Read the arrays for variables from `state.npz`. Names, shapes and types are checked before any data is read.

    Args:
        path: Folder of the checkpoint.
        variables: Variables by the names of the arrays.
        is_whole: True if the file must not contain other arrays.

    Returns:
        An array for each variable, by name.

    Raises:
        CheckpointError: If an array is missing, is not expected, or has another shape or type than its variable.
        Exception: Of any kind, if the file is malformed.
    """
    with zipfile.ZipFile(path / "state.npz") as file:
        _check_fit(path, file, variables, is_whole)
        # This takes no more memory than the variables do: arrays of another size were refused by their headers.
        return {name: _read_array(file, name) for name in variables}


def _check_fit(path: Path, file: zipfile.ZipFile, variables: Mapping[str, "tf.Variable"], is_whole: bool) -> None:
    names = {member.removesuffix(".npy") for member in file.namelist()}
    # Of the arrays without a variable, one is enough for the message.
    others = sorted(names - variables.keys())[:1] if is_whole else []
    found = {name: _header(file, name) for name in [*(names & variables.keys()), *others]}
    expected = {name: (tuple(v.shape), v.dtype.as_numpy_dtype) for name, v in variables.items()}
    if expected != found:
        name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise CheckpointError(
            f"checkpoint {path}: it belongs to another model or configuration; `{one_line(name)}` is "
            f"{_shape(found.get(name))} there and {_shape(expected.get(name))} here; use another --workdir"
        )


def _header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], type]:
    """Return the shape and type of an array without reading it."""
    with file.open(f"{name}.npy") as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{one_line(name)} is not an array as numpy.savez writes it")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype.hasobject:
        raise ValueError(f"{one_line(name)} holds Python objects, which only pickle could load; it is not used")
    return shape, dtype.type


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _shape(entry: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if entry is None else one_line(f"{np.dtype(entry[1]).name} {list(entry[0])}")
