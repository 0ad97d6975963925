"""The folder with the model that a run ends with, `slim` or `final`, which is replaced as a whole.

A folder cannot be renamed onto one that has files, so the old one is first set aside under a hidden name. If the
process is killed in between, the folder that was set aside is used instead.
"""

import os
import shutil
from pathlib import Path

from resrep_dist.errors import UserError

NAMES = ("slim", "final")
"""Names of the folder."""
EXPORT_NAME = "export"
"""Name of the folder beside it with the model in other formats."""


def current_folder(folder: Path) -> Path:
    """Return where the files of a result folder are. Nothing on disk changes.

    Args:
        folder: The result folder.

    Returns:
        `folder`, or the folder that was set aside if a kill left only that one.
    """
    aside = _aside(folder)
    return aside if aside.exists() and not folder.exists() else folder


def run_of(folder: Path) -> Path | None:
    """Return the folder of the run that a result folder belongs to.

    Args:
        folder: The result folder, or the one that was set aside for it.

    Returns:
        The folder of the run. None if `folder` is not the result of a run.
    """
    folder = folder.absolute()
    results = [folder.parent / name for name in NAMES]
    is_result = folder in (*results, *map(_aside, results))
    return folder.parent if is_result and (folder.parent / "config.yaml").exists() else None


def replace_folder(partial: Path, folder: Path) -> None:
    """Replace a result folder by a new one. The caller holds the lease of the run.

    Files of the old folder whose names the new one does not have are the user's; they move to the new one.

    Args:
        partial: The complete new folder, on the same file system. It is moved.
        folder: The result folder, which need not exist.

    Raises:
        OSError: If a folder cannot be flushed to disk or renamed.
    """
    recover_folder(folder)
    for path in (*partial.rglob("*"), partial):
        _flush(path)
    if os.path.lexists(folder):
        try:
            os.rename(folder, _aside(folder))
        except OSError as error:
            raise UserError(
                f"{_aside(folder)}: it is in the way and cannot be deleted ({error.strerror}); delete it, and start "
                "the same command again"
            ) from None
    os.rename(partial, folder)
    _flush(folder.parent)
    recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Finish a replacement that was interrupted, if there is one. The caller holds the lease of the run.

    Args:
        folder: The result folder.

    Raises:
        OSError: If a file or folder cannot be renamed.
    """
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
