"""Checkpoints: written whole or not at all, verified before a weight is loaded.

A checkpoint is a folder `step-00001200` with `state.npz` (arrays by name), `position.json` (where the run
stands) and `SHA256SUMS` of both, as `sha256sum --check` reads it. It is written beside and renamed, so that
the newest is never half there. Only rank 0 calls anything in here, and nothing in here is a collective.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrep_dist.errors import CheckpointError, CheckpointWriteError, DamagedCheckpointError

import numpy as np

if TYPE_CHECKING:
    # Only named in annotations; reading and writing needs no TensorFlow.
    import tensorflow as tf

_log = logging.getLogger(__name__)
_FORMAT = 2
_FILES = ("state.npz", "position.json")
_SUMS = "SHA256SUMS"


class CheckpointFolder:
    """The last few checkpoints of one phase of a run."""

    def __init__(self, folder: Path, num_kept: int = 3) -> None:
        self._folder, self._num_kept = folder, num_kept

    def save(self, step: int, arrays: Mapping[str, np.ndarray], position: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, then delete the oldest ones. Needs no TensorFlow; any thread may call it.

        Raises:
            CheckpointWriteError: when it cannot be written; what was there before is left as it is.
        """
        target = self._folder / f"step-{step:08d}"
        if target.exists() and not _damage(target):
            # The same step has the same state; replacing it would leave a moment without the newest.
            return target
        partial = target.with_name(f"{target.name}.partial")
        try:
            _write(partial, arrays, {"format": _FORMAT, "step": step, **position})
            for passed_over in (path for path in self._existing() if path.name >= target.name):
                # The run went on from one before them, since they are damaged; they must not seem the newest.
                os.replace(passed_over, _unused(passed_over.with_name(f"{passed_over.name}.damaged")))
            os.replace(partial, target)
            _flush_folder(self._folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointWriteError(_describe(target, error, sum(a.nbytes for a in arrays.values()))) from None
        for old in self._existing()[: -self._num_kept]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def restore_newest(self, variables: Mapping[str, "tf.Variable"], is_whole: bool = True) -> dict[str, Any] | None:
        """Load the newest checkpoint that is undamaged; returns its position, none in a new run.

        Args:
            is_whole: the variables are all that the checkpoint holds; False takes what they name.

        Raises:
            CheckpointError: when all are damaged, or the newest is of another model. Nothing is loaded then.
        """
        existing = self._existing()
        for path in reversed(existing):
            try:
                return restore(path, variables, is_whole)
            except DamagedCheckpointError as error:
                if path == existing[0]:
                    raise
                _log.error("%s; going back to the checkpoint before it", error)
        return None

    def delete_partial(self) -> None:
        """Delete what a killed run left half written."""
        for partial in self._folder.glob("step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def _existing(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if not path.suffix)


def snapshot(variables: Mapping[str, "tf.Variable"]) -> dict[str, np.ndarray]:
    """Copies of the variables' values; what the variables do later does not reach them."""
    # `numpy` of a variable copies, also where the value is in the host's memory already.
    return {name: variable.numpy() for name, variable in variables.items()}


def restore(path: Path, variables: Mapping[str, "tf.Variable"], is_whole: bool = True) -> dict[str, Any]:
    """Load a checkpoint into the variables; returns its position. Nothing is loaded unless all of it fits.

    Raises:
        DamagedCheckpointError: when a file is missing or is not as it was written.
        CheckpointError: for a checkpoint of another model or of another version of this format.
    """
    damage = _damage(path)
    if damage:
        raise DamagedCheckpointError(f"checkpoint {path}: it is damaged, {damage}")
    try:
        position = json.loads((path / "position.json").read_text(encoding="utf-8"))
        with np.load(path / "state.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if position["format"] != _FORMAT:
            raise CheckpointError(f"checkpoint {path}: format {position['format']}, this version reads {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, CheckpointError):
            raise
        raise DamagedCheckpointError(f"checkpoint {path}: it cannot be read ({error})") from None
    _check_fit(path, arrays, variables, is_whole)
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return position


def _check_fit(
    path: Path, arrays: Mapping[str, np.ndarray], variables: Mapping[str, "tf.Variable"], is_whole: bool
) -> None:
    expected = {name: (tuple(v.shape), v.dtype.as_numpy_dtype) for name, v in variables.items()}
    found = {name: (array.shape, array.dtype.type) for name, array in arrays.items() if is_whole or name in expected}
    if expected != found:
        name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise CheckpointError(
            f"checkpoint {path}: it belongs to another model or configuration; `{name}` is "
            f"{_shape(found.get(name))} there and {_shape(expected.get(name))} here; use another --workdir"
        )


def _shape(entry: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if entry is None else f"{np.dtype(entry[1]).name} {list(entry[0])}"


def _write(folder: Path, arrays: Mapping[str, np.ndarray], position: Mapping[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    state = io.BytesIO()
    np.savez(state, **arrays)
    _write_file(folder / "state.npz", state.getbuffer())
    _write_file(folder / "position.json", json.dumps(position, indent=1).encode())
    _write_file(folder / _SUMS, _sums(folder).encode())
    _flush_folder(folder)


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint's files, nothing for a good one."""
    try:
        # Compared as text, so that a flipped bit of the list itself shows as well.
        if (path / _SUMS).read_bytes() == _sums(path).encode():
            return ""
        return f"its files do not have the checksums in {_SUMS}"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"


def _sums(folder: Path) -> str:
    lines = []
    for name in _FILES:
        with open(folder / name, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        lines.append(f"{digest.hexdigest()}  {name}\n")
    return "".join(lines)


def _describe(target: Path, error: OSError, num_bytes: int) -> str:
    existing = next((folder for folder in target.parents if folder.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    return (
        f"checkpoint {target}: cannot be written ({error.strerror or error}); it needs {num_bytes:,} bytes, "
        f"{free:,} are free there; the checkpoint before it is untouched"
    )


def _unused(path: Path) -> Path:
    number = 0
    while (candidate := path if not number else path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def _write_file(path: Path, data: bytes | memoryview) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
