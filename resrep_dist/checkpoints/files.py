"""Checkpoint folders: written completely or not at all, and verified before a weight is loaded.

A checkpoint is a folder `step-00001200` with `state.npz` (arrays by name), `position.json` (where the run stands) and
`SHA256SUMS`, the checksums of both in the format of `sha256sum --check`. It is written under another name and then
renamed, so an incomplete folder is never taken for a checkpoint. Only rank 0 uses this module, and nothing in it is a
collective.
"""

import hashlib
import io
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrep_dist.checkpoints.arrays import read_arrays
from resrep_dist.checkpoints.disk import flush_folder, free_space, remove, unused, write_file
from resrep_dist.errors import CheckpointError, CheckpointWriteError, DamagedCheckpointError, one_line

import numpy as np

if TYPE_CHECKING:
    # Only for annotations: reading and writing need no TensorFlow.
    import tensorflow as tf

_log = logging.getLogger(__name__)

Variables = Mapping[str, "tf.Variable"]
VariablesAt = Callable[[dict[str, Any]], Variables]
"""A function from the position in a checkpoint to the variables into which its arrays are loaded."""

_FORMAT = 2
_FILES = ("state.npz", "position.json")
_SUMS = "SHA256SUMS"
_MAX_POSITION_BYTES = 1 << 24


class CheckpointFolder:
    """The newest checkpoints of one phase of a run.

    Args:
        folder: The folder; it is created when needed.
        num_kept: Number of checkpoints that are kept.
    """

    def __init__(self, folder: Path, num_kept: int = 3) -> None:
        self._folder, self._num_kept = folder, num_kept

    def save(self, step: int, arrays: Mapping[str, np.ndarray], position: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete the oldest ones.

        It uses no TensorFlow, so any thread can call it. A good checkpoint of the same step is left as it is, since it
        has the same state.

        Args:
            step: Number of steps made.
            arrays: The state, by name.
            position: What else a resumed run needs, as JSON values; `step` and the format are added.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointWriteError: If it cannot be written; earlier checkpoints are left as they are.
        """
        target = self._folder / f"step-{step:08d}"
        partial = target.with_name(f"{target.name}.partial")
        # All of it: on a network disk even `exists` can fail.
        try:
            if target.exists() and not _damage(target):
                # It has the same state. If it were replaced, there would be no newest checkpoint for a moment.
                return target
            for interrupted in _listed(self._folder, ".partial"):
                remove(interrupted)
            existing = _listed(self._folder)
            _write(partial, arrays, {"format": _FORMAT, "step": step, **position})
            for passed_over in (path for path in existing if _step_of(path) >= step):
                # The run has resumed from an earlier step because these are damaged. They must not be the newest.
                os.replace(passed_over, unused(passed_over.with_name(f"{passed_over.name}.damaged")))
            os.replace(partial, target)
            flush_folder(self._folder)
        except OSError as error:
            remove(partial)
            raise CheckpointWriteError(_describe(target, error, sum(a.nbytes for a in arrays.values()))) from None
        for old in [*(path for path in existing if _step_of(path) < step), target][: -self._num_kept]:
            remove(old)
        return target

    def restore_newest(self, variables: "Variables | VariablesAt", is_whole: bool = True) -> dict[str, Any] | None:
        """Load the newest checkpoint that is not damaged.

        Args:
            variables: Variables by the names of the arrays, or a function that returns them for a checkpoint's
                position.
            is_whole: True if they are all that the checkpoint must contain. False to load only the arrays that they
                name.

        Returns:
            The position of the checkpoint; None if there is no checkpoint.

        Raises:
            CheckpointError: If all are damaged, the newest is of another model, or the folder cannot be listed; nothing
                is loaded then.
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

    def newest_step(self) -> int | None:
        """Return the step of the newest checkpoint, damaged or not; None if there is none.

        Raises:
            CheckpointError: If the folder cannot be listed.
        """
        existing = self._existing()
        return _step_of(existing[-1]) if existing else None

    def newest_position(self) -> dict[str, Any] | None:
        """Return the position of the newest checkpoint; None if there is none, or it cannot be read.

        Raises:
            CheckpointError: If the folder cannot be listed.
        """
        existing = self._existing()
        try:
            return _read_position(existing[-1]) if existing else None
        except (OSError, ValueError, RecursionError):
            return None

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step.

        Args:
            step: The step.

        Raises:
            CheckpointError: If there is none, or the folder cannot be listed. The message has the steps that there are.
        """
        path, existing = self._folder / f"step-{step:08d}", self._existing()
        if path not in existing:
            steps = ", ".join(str(_step_of(found)) for found in existing)
            raise CheckpointError(f"checkpoint {path}: there is none; expected one of the steps {steps or '(none)'}")
        return path

    def state_sha256(self, step: int) -> str:
        """Return the SHA-256 checksum of a checkpoint's arrays as they were written, hexadecimal.

        Args:
            step: Step of the checkpoint, which must exist.
        """
        text = (self._folder / f"step-{step:08d}" / _SUMS).read_text(encoding="ascii")
        sums = {name: checksum for checksum, name in (line.split() for line in text.splitlines())}
        return sums["state.npz"]

    def delete_partial(self) -> None:
        """Delete incomplete checkpoints.

        They remain if a run was killed, or if a read-only disk prevented their deletion.

        Raises:
            CheckpointError: If the folder cannot be listed.
        """
        for partial in self._existing(".partial"):
            remove(partial)

    def _existing(self, suffix: str = "") -> list[Path]:
        try:
            return _listed(self._folder, suffix)
        except OSError as error:
            # If the folder was taken for empty, the run would start anew and set aside the checkpoints in it.
            raise CheckpointError(
                f"checkpoint folder {self._folder}: cannot be listed ({error.strerror or error}); expected a folder "
                "that can be read; fix its permissions or its disk"
            ) from None


def snapshot(variables: Mapping[str, "tf.Variable"]) -> dict[str, np.ndarray]:
    """Return copies of the values of variables, which do not change with the variables.

    Args:
        variables: Variables by name.
    """
    # `numpy` of a variable always copies, even if the value is in the host's memory already.
    return {name: variable.numpy() for name, variable in variables.items()}


def restore(path: Path, variables: "Variables | VariablesAt", is_whole: bool = True) -> dict[str, Any]:
    """Load a checkpoint into variables. Nothing is loaded unless everything fits.

    Args:
        path: Folder of the checkpoint.
        variables: As in `CheckpointFolder.restore_newest`.
        is_whole: As in `CheckpointFolder.restore_newest`.

    Returns:
        The position of the checkpoint.

    Raises:
        DamagedCheckpointError: If a file is missing or has changed since it was written.
        CheckpointError: If the checkpoint is of another model or of another version of the format.
    """
    damage = _damage(path)
    if damage:
        raise DamagedCheckpointError(f"checkpoint {path}: it is damaged, {damage}")
    try:
        position = _read_position(path)
        if callable(variables):
            variables = variables(position)
        arrays = read_arrays(path, variables, is_whole)
    except CheckpointError:
        raise
    except Exception as error:  # checksums do not prove who wrote it, and a malicious file can raise anything
        raise DamagedCheckpointError(f"checkpoint {path}: it cannot be read ({one_line(error)})") from None
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return position


def _read_position(path: Path) -> dict[str, Any]:
    file = path / "position.json"
    if file.stat().st_size > _MAX_POSITION_BYTES:
        raise ValueError(f"position.json has more than {_MAX_POSITION_BYTES:,} bytes")
    position = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(position, dict):
        raise ValueError("position.json is not a JSON object")
    if position.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: format {one_line(position.get('format'), 50)}, this version reads {_FORMAT}"
        )
    for key in ("step", "num_chosen"):
        if type(position.get(key)) is not int or not 0 <= position[key] < 1 << 63:
            raise ValueError(
                f"position.json: received {key} {one_line(position.get(key), 50)}, expected a whole number from 0"
            )
    return position


def _write(folder: Path, arrays: Mapping[str, np.ndarray], position: Mapping[str, Any]) -> None:
    remove(folder)
    folder.mkdir(parents=True)
    state = io.BytesIO()
    # Any: in the types of NumPy a value may also be that of allow_pickle.
    np.savez(state, **dict[str, Any](arrays))
    write_file(folder / "state.npz", state.getbuffer())
    write_file(folder / "position.json", json.dumps(position, indent=1).encode())
    write_file(folder / _SUMS, _sums(folder).encode())
    flush_folder(folder)


def _damage(path: Path) -> str:
    """Return what is wrong with the files of a checkpoint; empty if nothing is."""
    try:
        for name in (*_FILES, _SUMS):
            # Reading a pipe or a device might never end.
            if not stat.S_ISREG((path / name).stat().st_mode):
                return f"{name} is not a file"
        # Compared as text, so that a flipped bit of the list itself is found too.
        sums = _sums(path).encode()
        if (path / _SUMS).stat().st_size == len(sums) and (path / _SUMS).read_bytes() == sums:
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


def _listed(folder: Path, suffix: str = "") -> list[Path]:
    """Return the checkpoints in a folder by step, or what has a suffix; nothing if there is no folder.

    A user's own copies, such as `step-00001200-keep`, are not among them.
    """
    pattern = re.compile(rf"step-\d{{8,}}{re.escape(suffix)}")
    try:
        # `Path.glob` also returns nothing for a folder that cannot be listed.
        found = [folder / name for name in os.listdir(folder) if pattern.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-").partition(".")[0])


def _describe(target: Path, error: OSError, num_bytes: int) -> str:
    return (
        f"checkpoint {target}: cannot be written ({error.strerror or error}); it needs {num_bytes:,} bytes, "
        f"{free_space(target)}; the checkpoint before it is untouched"
    )
