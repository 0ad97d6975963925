"""CIFAR-10 and CIFAR-100 from the published binary version (www.cs.toronto.edu/~kriz/cifar.html).

A record is a label of one byte (for CIFAR-100 the coarse, then the fine label) and 32 x 32 bytes of red, then green,
then blue.
"""

import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from resrep_dist.data.normalization import Normalization
from resrep_dist.data.source import Source
from resrep_dist.errors import DataError, one_line

import numpy as np

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
"""Number of classes of each set."""
_NUM_PIXELS = 32 * 32 * 3
# What reading an archive ends in if it is none, cut off or damaged.
_DAMAGED = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
_TRAIN_FILES = {"cifar10": [f"data_batch_{number}.bin" for number in range(1, 6)], "cifar100": ["train.bin"]}


def _of_fractions(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    return Normalization([255.0 * value for value in mean], [255.0 * value for value in std])


# Mean and standard deviation of all pixels of the training set.
_CIFAR10 = _of_fractions((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = _of_fractions((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def cifar10(path: Path, normalization: Normalization | None = None) -> tuple[Source, Source]:
    """Read CIFAR-10, 10 classes and 32 pixels.

    Args:
        path: Folder or tar archive with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
        normalization: Scale of the pixels. None for mean and standard deviation of the training set.

    Returns:
        Training set and validation set.

    Raises:
        DataError: If a file is missing, cannot be read or is not of the binary version.
    """
    scale = normalization or _CIFAR10
    train = _source(path, _TRAIN_FILES["cifar10"], 1, 10, scale)
    return train, _source(path, ["test_batch.bin"], 1, 10, scale)


def cifar100(path: Path, normalization: Normalization | None = None) -> tuple[Source, Source]:
    """Read CIFAR-100, 100 classes (the fine labels) and 32 pixels.

    Args:
        path: Folder or tar archive with `train.bin` and `test.bin`.
        normalization: Scale of the pixels. None for mean and standard deviation of the training set.

    Returns:
        Training set and validation set.

    Raises:
        DataError: If a file is missing, cannot be read or is not of the binary version.
    """
    scale = normalization or _CIFAR100
    train = _source(path, _TRAIN_FILES["cifar100"], 2, 100, scale)
    return train, _source(path, ["test.bin"], 2, 100, scale)


def find_sets(path: Path) -> list[str]:
    """Find out which sets a folder or a tar archive holds, at any depth, by the name of the first training file.

    Args:
        path: The folder or archive.

    Returns:
        Of `cifar10` and `cifar100` those that are there; none for what is no folder and no whole archive.
    """
    try:
        if path.is_dir():
            names = {file.name for file in path.rglob("*.bin")}
        else:
            with tarfile.open(path) as archive:
                names = {Path(member.name).name for member in archive if member.isfile()}
    except _DAMAGED:
        return []
    return [name for name, files in _TRAIN_FILES.items() if files[0] in names]


def _source(
    path: Path,
    names: Sequence[str],
    num_labels: int,
    num_classes: int,
    normalization: Normalization,
) -> Source:
    """Read records with `num_labels` bytes before the pixels, of which the last one is the label."""
    records = []
    for name, data in zip(names, _read(path, names), strict=True):
        if len(data) == 0 or len(data) % (num_labels + _NUM_PIXELS):
            raise DataError(
                f"data.path {path}: {name} has {len(data)} bytes, expected a multiple of {num_labels + _NUM_PIXELS}; "
                "it is truncated or not of the binary version"
            )
        records.append(np.frombuffer(data, np.uint8).reshape(-1, num_labels + _NUM_PIXELS))
    table = np.concatenate(records)
    images: np.ndarray = table[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if normalization.is_bgr:
        images = images[..., ::-1]
    images, labels = np.ascontiguousarray(images), table[:, num_labels - 1].astype(np.int64)
    return Source(images, labels, num_classes, normalization.mean, normalization.std, normalization)


def _read(path: Path, names: Sequence[str]) -> list[bytes]:
    """Read the files of these names in a folder or an archive, at any depth."""
    try:
        if path.is_dir():
            found = {file.name: file for file in sorted(path.rglob("*.bin"), reverse=True)}
            return [found[name].read_bytes() for name in names]
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            files = [archive.extractfile(members[name]) for name in names]
            return [file.read() for file in files if file]
    except KeyError as error:
        raise DataError(
            f"data.path {path}: no {error.args[0]} in it; expected {', '.join(names)} of the binary version"
        ) from None
    except _DAMAGED as error:
        raise DataError(
            f"data.path {path}: cannot be read ({one_line(error)}); give the folder or the .tar.gz"
        ) from None
