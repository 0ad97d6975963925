"""What is kept beside exported files: how each compares with the Keras model, and how the model is used."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resrep_dist.errors import UserError, one_line
from resrep_dist.export.convert import replacing

RECORD_NAME = "export.json"
"""Name of the record: for each file how it compares with the Keras model."""
USAGE_NAME = "usage.json"
"""Name of the file that says how the model is used."""


def record_export(export: Any, num_bytes: int, model_sha256: str) -> Path:
    """Write the figures of an export into the record of its folder, and keep those of other files.

    Args:
        export: A dataclass with the `path` of the exported file and its figures, in JSON's types.
        num_bytes: Size of the exported file.
        model_sha256: SHA-256 of the Keras file that it was made from.

    Returns:
        The path of the record.

    Raises:
        UserError: If the record cannot be read or written.
    """
    figures = dataclasses.asdict(export)
    exported = figures.pop("path")
    path = exported.parent / RECORD_NAME
    partial = path.with_name(f".{RECORD_NAME}.partial")
    with _reading_or_writing(path):
        document = _read(path)
        document[exported.name] = {"size_bytes": num_bytes, "model_sha256": model_sha256, **figures}
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
        os.replace(partial, path)
    return path


def require_earlier_exports(folder: Path, names: Iterable[str]) -> None:
    """Check that files which are about to be exported replace nothing but earlier exports.

    Args:
        folder: Their folder, which need not exist.
        names: Their names.

    Raises:
        UserError: If one of them exists and the record of the folder does not name it, or the record cannot be read.
    """
    record = folder / RECORD_NAME
    # A link is replaced too, whatever it points to.
    for path in (folder / name for name in names if os.path.lexists(folder / name)):
        with _reading_or_writing(record):
            is_export = path.name in _read(record)
        if not is_export:
            raise UserError(
                f"{path}: it exists, and {RECORD_NAME} beside it does not name it as an export (0.2.0 kept no record); "
                "give another --output, or move it"
            )


def record_usage(folder: Path, usage: Mapping[str, Any]) -> None:
    """Write how the model of exported files is used, beside them.

    Args:
        folder: Their folder.
        usage: See `usage_of`.

    Raises:
        UserError: If it cannot be written.
    """
    with replacing(folder / USAGE_NAME) as partial:
        partial.write_text(json.dumps(usage, indent=1), encoding="utf-8")


def require_earlier_usage(folder: Path) -> None:
    """Check that a usage which is about to be written replaces nothing but that of earlier exports.

    Args:
        folder: Folder of the exports, which need not exist.

    Raises:
        UserError: If the file exists, and the folder has no record of exports.
    """
    path = folder / USAGE_NAME
    if os.path.lexists(path) and not (folder / RECORD_NAME).exists():
        raise UserError(
            f"{path}: it exists, and without {RECORD_NAME} beside it nothing says that it is of an export; give "
            "another --output, or move it"
        )


@contextlib.contextmanager
def _reading_or_writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read or written ({one_line(error)}); delete it, or give another --output"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document
