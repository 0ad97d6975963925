"""Reads the arrays of a checkpoint, if their headers say that they fit the variables."""

import re
import zipfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrep_dist.errors import CheckpointError, one_line

import numpy as np

if TYPE_CHECKING:
    # Only for annotations: reading needs no TensorFlow.
    import tensorflow as tf

# The array of a layer that Keras has numbered, or of its compactor.
_NUMBERED = re.compile(
    r"(?P<before>(?:velocity|average)/)?(?P<base>[a-z][a-z0-9_]*?)(?:_(?P<number>[0-9]{1,9}))?(?P<rest>(?:_compactor)?/.*)"
)


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
        stored = _stored_names({member.removesuffix(".npy") for member in file.namelist()}, variables.keys())
        _check_fit(path, file, stored, variables, is_whole)
        # This takes no more memory than the variables do: arrays of another size were refused by their headers.
        return {name: _read_array(file, stored[name]) for name in variables}


def _stored_names(stored: Set[str], wanted: Set[str]) -> dict[str, str]:
    """Return the arrays in the file by the names that they have here.

    Keras numbers layers without a name by what the process has built before. If the names differ, only the order of the
    numbers has to be the same.
    """
    if wanted <= stored:
        return {name: name for name in stored}
    ours = {plain: name for name, plain in _with_plain_numbers(wanted).items()}
    return {ours.get(plain, name): name for name, plain in _with_plain_numbers(stored).items()}


def _with_plain_numbers(names: Set[str]) -> dict[str, str]:
    """Return for each name the same one with the layer's number counted from 0 among those in `names`."""
    matches = {name: match for name in names if (match := _NUMBERED.fullmatch(name))}
    numbers: dict[str, set[int]] = {}
    for match in matches.values():
        numbers.setdefault(match["base"], set()).add(int(match["number"] or 0))
    order = {base: {number: index for index, number in enumerate(sorted(found))} for base, found in numbers.items()}
    plain = {name: name for name in names}
    for name, match in matches.items():
        index = order[match["base"]][int(match["number"] or 0)]
        plain[name] = f"{match['before'] or ''}{match['base']}#{index}{match['rest']}"
    return plain


def _check_fit(
    path: Path,
    file: zipfile.ZipFile,
    stored: Mapping[str, str],
    variables: Mapping[str, "tf.Variable"],
    is_whole: bool,
) -> None:
    # Of the arrays without a variable, one is enough for the message.
    others = sorted(stored.keys() - variables.keys())[:1] if is_whole else []
    found = {name: _header(file, stored[name]) for name in [*(stored.keys() & variables.keys()), *others]}
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
