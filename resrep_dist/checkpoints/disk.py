"""Files and folders that outlive a loss of power: written, flushed, removed."""

import contextlib
import os
import shutil
from pathlib import Path


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it.

    Args:
        path: The file.
        data: Its content.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder.

    Args:
        folder: The folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a folder, or a file or link in its place; the target of a link is not deleted. Errors are ignored.

    Args:
        path: What is deleted.
    """
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.is_file():
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def unused(path: Path) -> Path:
    """Return a path that does not exist: this one, or with a number behind it.

    Args:
        path: The path.
    """
    number = 0
    while (candidate := path if not number else path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def free_space(path: Path) -> str:
    """Return how much is free where a path would be written, as part of a message.

    Args:
        path: The path, which need not exist.
    """
    try:
        existing = next((folder for folder in path.parents if folder.exists()), Path("/"))
        return f"{shutil.disk_usage(existing).free:,} are free there"
    except OSError:
        return "the free space is unknown"
