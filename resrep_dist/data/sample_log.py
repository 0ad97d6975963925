"""A record of which samples a rank has seen: the proof that each came once, on any number of ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resrep_dist.data.source import NamedErrors


def recorded(batches: NamedErrors, path: Path, first_step: int) -> Iterator[Any]:
    """The batches as they are; for each one a line is written: its step, then its samples' indices.

    Args:
        first_step: number of the first batch's step, counted from 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", buffering=1, encoding="ascii") as file:
        for number, batch in enumerate(batches):
            indices = (str(int(index)) for index in batches.indices_of(number))
            file.write(f"{first_step + number},{','.join(indices)}\n")
            yield batch
