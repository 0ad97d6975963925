"""Checkpoints: written whole or not at all, verified before a weight is loaded.

A checkpoint is a folder `step-00001200` with `state.npz` (arrays by name) and `manifest.json` (position of
the run and the SHA-256 of the arrays). It is written beside and renamed, so that the newest is never half
there. Only rank 0 calls anything in here, and nothing in here is a collective.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.errors import CheckpointError

import numpy as np
import tensorflow as tf

_FORMAT = 1


class CheckpointFolder:
    """The last few checkpoints of one phase of a run."""

    def __init__(self, folder: Path, num_kept: int = 3) -> None:
        self._folder, self._num_kept = folder, num_kept

    def save(self, step: int, variables: Mapping[str, tf.Variable], position: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, then delete the oldest ones."""
        target = self._folder / f"step-{step:08d}"
        if target.exists():
            # The same step has the same state; replacing it would leave a moment without the newest.
            return target
        partial = self._folder / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with open(partial / "state.npz", "wb") as file:
            np.savez(file, **{name: variable.numpy() for name, variable in variables.items()})
            _flush_to_disk(file)
        manifest = {
            "format": _FORMAT,
            "step": step,
            "position": dict(position),
            "sha256": {"state.npz": _sha256(partial / "state.npz")},
        }
        with open(partial / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            _flush_to_disk(file)
        os.replace(partial, target)
        for old in self._existing()[: -self._num_kept]:
            shutil.rmtree(old)
        return target

    def newest(self) -> Path | None:
        """The newest complete checkpoint, none in a new run."""
        existing = self._existing()
        return existing[-1] if existing else None

    def _existing(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if path.suffix != ".partial")


def restore(path: Path, variables: Mapping[str, tf.Variable], is_whole: bool = True) -> dict[str, Any]:
    """Load a checkpoint into the variables; returns its manifest. Nothing is loaded unless all of it fits.

    Args:
        is_whole: the variables are all that the checkpoint holds; False takes what they name.

    Raises:
        CheckpointError: for a damaged checkpoint, or one of another model.
    """
    manifest = read_manifest(path)
    try:
        if _sha256(path / "state.npz") != manifest["sha256"]["state.npz"]:
            raise CheckpointError(f"checkpoint {path}: state.npz does not have the SHA-256 of its manifest{_MEND}")
        with np.load(path / "state.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {path}: state.npz cannot be read ({error}){_MEND}") from None
    expected = {name: (tuple(v.shape), v.dtype.as_numpy_dtype) for name, v in variables.items()}
    found = {name: (array.shape, array.dtype.type) for name, array in arrays.items() if is_whole or name in expected}
    if expected != found:
        name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise CheckpointError(
            f"checkpoint {path}: it belongs to another model or configuration; `{name}` is "
            f"{_shape(found.get(name))} there and {_shape(expected.get(name))} here; use another --workdir"
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint: step and position of the run."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or not isinstance(manifest["step"], int):
            raise ValueError(f"format {manifest['format']!r}, expected {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: manifest.json cannot be read ({error!r}){_MEND}") from None
    return manifest


_MEND = "; move this folder away to go on from the checkpoint before it"


def _shape(entry: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if entry is None else f"{np.dtype(entry[1]).name} {list(entry[0])}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
