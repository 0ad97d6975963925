"""A record of the samples that each rank trains on: the proof that each came once, on any number of ranks."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from resrep_dist.data.source import NamedErrors
from resrep_dist.monitoring.hooks import Hook, Watched


class SampleLog(Hook):
    """Every rank writes a line for each batch, its step and its samples' indices, into a file of its own in `folder`.

    It has to be the first of the hooks, since it asks the batches for their samples.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; a line is written before each is trained on."""
        assert isinstance(batches, NamedErrors)
        rank, size, first_step = trainer.cluster.rank, trainer.cluster.size, trainer.step
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"from-step-{first_step:08d}-rank-{rank}-of-{size}.csv"
        with open(path, "w", buffering=1, encoding="ascii") as file:
            for number, batch in enumerate(batches):
                indices = (str(int(index)) for index in batches.indices_of(number))
                file.write(f"{first_step + number},{','.join(indices)}\n")
                yield batch
