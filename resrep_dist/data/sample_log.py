"""A log of the samples that a rank has used, from which it can be checked that each was used once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrep_dist.data.source import NamedErrors


def recorded(batches: NamedErrors, path: Path, first_step: int) -> Iterator[Any]:
    """Yield batches, and write for each one a line with its step and the indices of its samples.

    Args:
        batches: The batches of `training_batches`.
        path: The file, which is replaced. Its folder is created if it does not exist.
        first_step: Step of the first batch, counted from 0.

    Yields:
        The batches, unchanged.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", buffering=1, encoding="ascii") as file:
        for number, batch in enumerate(batches):
            indices = (str(int(index)) for index in batches.indices_of(number))
            file.write(f"{first_step + number},{','.join(indices)}\n")
            yield batch
