"""An index of the records of TFRecord files, so that any record can be read directly.

A TFRecord file is a sequence of records, each with a frame: uint64 length, uint32 checksum of the length, the data,
uint32 checksum of the data (little endian; TensorFlow's guide "TFRecord and tf.train.Example"). Only the lengths are
read to find all records.
"""

import array
import dataclasses
import logging
import os
import platform
import resource
import time
import weakref
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resrep_dist.errors import DataError

import numpy as np

_log = logging.getLogger(__name__)
_FRAME_BYTES = 16
_HEADER_BYTES = 12
_NUM_THREADS = 16
# For the validation set's shards and all other files that the process opens.
_NUM_OTHER_FILES = 1024


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """All records of some files, in the order of the files.

    Attributes:
        paths: The files.
        files: int32 [N], index of the file of each record.
        offsets: int64 [N], where the data of each record begins in its file, bytes.
        lengths: int64 [N], length of the data of each record, bytes.
    """

    paths: tuple[Path, ...]
    files: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def describe(self, index: int) -> str:
        """Return the file of a record and its number in the file, counted from 0, for a message."""
        file = int(self.files[index])
        return f"{self.paths[file]}: record {index - int(np.searchsorted(self.files, file))}"


class RecordReader:
    """Reads any records of an index; the files stay open as long as the reader exists.

    Args:
        index: The records.

    Raises:
        OSError: If a file cannot be opened.
        DataError: If the process may not open so many files.
    """

    def __init__(self, index: RecordIndex) -> None:
        self._index = index
        _allow_open_files(len(index.paths))
        self._descriptors = [os.open(path, os.O_RDONLY) for path in index.paths]
        weakref.finalize(self, _close, self._descriptors)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the data of records.

        Args:
            indices: int64 [B].

        Returns:
            object [B] of bytes.

        Raises:
            OSError: If a file cannot be read.
        """
        places = [
            (self._descriptors[self._index.files[i]], int(self._index.lengths[i]), int(self._index.offsets[i]))
            for i in indices
        ]
        # The disk or network file system gets the whole batch at once.
        if hasattr(os, "posix_fadvise"):
            for descriptor, length, offset in places:
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        records = np.empty(len(places), object)
        records[:] = [os.pread(*place) for place in places]
        return records


def index_records(paths: Sequence[Path], index_file: Path | None = None) -> RecordIndex:
    """Find the records of files, by scanning them or from an index file.

    Args:
        paths: The files, in the order of the records.
        index_file: File in which the index is kept, and from which it is read if the files have the names, sizes and
            times that it has stored. None to always scan.

    Raises:
        DataError: If a file is missing, truncated, or not a TFRecord file, or the index file cannot be written.
    """
    try:
        identity = {
            "names": np.array([path.name for path in paths]),
            "sizes": np.array([path.stat().st_size for path in paths]),
            "modified_nanoseconds": np.array([path.stat().st_mtime_ns for path in paths]),
        }
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
    stored = _load(index_file, identity)
    if stored is None:
        start = time.perf_counter()
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            scanned = list(pool.map(_scan, paths))
        counts = np.array([len(offsets) for offsets in scanned])
        stored = {"counts": counts, "starts": np.concatenate(scanned)}
        _log.info("Found %d records in %d files in %.1f s.", counts.sum(), len(paths), time.perf_counter() - start)
        if index_file is not None:
            _store(index_file, identity | stored)
    counts, starts = stored["counts"], stored["starts"]
    ends = np.append(starts[1:], 0)
    ends[np.cumsum(counts) - 1] = identity["sizes"]
    return RecordIndex(
        tuple(paths),
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        starts + _HEADER_BYTES,
        ends - starts - _FRAME_BYTES,
    )


def _scan(path: Path) -> np.ndarray:
    """Return where the frame of each record begins, int64 [N], bytes."""
    size, start = path.stat().st_size, 0
    starts = array.array("q")
    with open(path, "rb", buffering=0) as file:
        descriptor = file.fileno()
        while start < size:
            header = os.pread(descriptor, 8, start)
            end = start + _FRAME_BYTES + int.from_bytes(header, "little")
            if len(header) < 8 or end > size:
                raise DataError(
                    f"{path}: record {len(starts)} should end at byte {end}, but the file has {size}; it is truncated, "
                    "compressed or not a TFRecord file; copy or write it again, uncompressed"
                )
            starts.append(start)
            start = end
    if not starts:
        raise DataError(f"{path}: holds no record; copy or write it again")
    return np.frombuffer(starts, np.int64)


def _load(index_file: Path | None, identity: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    if index_file is None or not index_file.exists():
        return None
    try:
        with np.load(index_file, allow_pickle=False) as arrays:
            if all(np.array_equal(arrays[name], values) for name, values in identity.items()):
                return {name: arrays[name] for name in ("counts", "starts")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    _log.info("%s is of other files; scanning them again.", index_file)
    return None


def _store(index_file: Path, arrays: dict[str, Any]) -> None:
    # Every rank may write it; each writes a whole one.
    partial = index_file.with_name(f"{index_file.name}.{platform.node()}.{os.getpid()}.partial.npz")
    try:
        index_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)
        os.replace(partial, index_file)
    except OSError as error:
        raise DataError(
            f"data.index_folder {index_file.parent}: cannot be written ({error.strerror}); use another or none"
        ) from None


def _allow_open_files(num_files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + num_files + _NUM_OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise DataError(f"{num_files} record files need a limit of {needed} open files; raise `ulimit -n` ({hard})")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
