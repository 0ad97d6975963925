"""Logs the samples that each rank trains on, to prove that each is used once per epoch on any number of ranks."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from resrep_dist.data.batches import Batches
from resrep_dist.monitoring.hooks import Hook, Watched


class SampleLog(Hook):
    """Writes one line per batch, the step and the indices of its samples, to one file per rank.

    It must be the first hook, since it asks the batches of the data source for their samples.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wrap_batches(self, trainer: Watched, batches: Iterable[Any]) -> Iterator[Any]:
        """Write a line before each batch is trained on.

        Args:
            trainer: The run.
            batches: Batches of the data source.

        Returns:
            The same batches.
        """
        assert isinstance(batches, Batches)
        rank, size, first_step = trainer.cluster.rank, trainer.cluster.size, trainer.step
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"from-step-{first_step:08d}-rank-{rank}-of-{size}.csv"
        with open(path, "w", buffering=1, encoding="ascii") as file:
            for number, batch in enumerate(batches):
                indices = (str(int(index)) for index in batches.indices_of(number))
                file.write(f"{first_step + number},{','.join(indices)}\n")
                yield batch
