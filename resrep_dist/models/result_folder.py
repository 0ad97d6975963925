"""The folder with the model that a run ends with, `slim` or `final`: replaced as a whole, and never half there.

A folder cannot be renamed onto another one, so the old one is set aside under a hidden name first. Where a process is
killed in between, the one set aside stands in for the folder.
"""

import os
import shutil
from pathlib import Path

from resrep_dist.errors import UserError

NAMES = ("slim", "final")
EXPORT_NAME = "export"
"""Of the folder beside it, for other formats of the model."""


def current_folder(folder: Path) -> Path:
    """Where the files of the folder are: in itself, or in the one set aside. Changes nothing."""
    aside = _aside(folder)
    return aside if aside.exists() and not folder.exists() else folder


def run_of(folder: Path) -> Path | None:
    """The folder of the run whose result this folder is; None if it is no result of a run."""
    folder = folder.absolute()
    results = [folder.parent / name for name in NAMES]
    is_result = folder in (*results, *map(_aside, results))
    return folder.parent if is_result and (folder.parent / "config.yaml").exists() else None


def replace_folder(partial: Path, folder: Path) -> None:
    """Put the complete folder `partial` in the place of `folder`. The caller holds the lease of the run.

    Files of the old folder whose names the new one does not have are the user's; they move to the new one.
    """
    recover_folder(folder)
    for path in (*partial.rglob("*"), partial):
        _flush(path)
    if os.path.lexists(folder):
        try:
            os.rename(folder, _aside(folder))
        except OSError as error:
            raise UserError(
                f"{_aside(folder)}: it is in the way and cannot be deleted ({error.strerror}); delete it, and start the "
                "same command again"
            ) from None
    os.rename(partial, folder)
    _flush(folder.parent)
    recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Bring to an end what `replace_folder` had begun. The caller holds the lease of the run."""
    aside = _aside(folder)
    if not os.path.lexists(aside):
        return
    if not os.path.lexists(folder):
        os.rename(aside, folder)
        return
    if aside.is_symlink():
        # What a link points to stays.
        aside.unlink()
        return
    names = {path.name for path in folder.iterdir()}
    for path in list(aside.iterdir()):
        if path.name not in names:
            os.rename(path, folder / path.name)
    # What cannot be deleted now is deleted next time.
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
