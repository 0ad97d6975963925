"""Keeps the checkpoint with the highest validation score of a phase, apart from the newest ones."""

import logging
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.files import CheckpointFolder
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.checkpoints.writer import CheckpointWriter
from resrep_dist.config import Config
from resrep_dist.config.tasks import Score
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointError
from resrep_dist.graph import Graph
from resrep_dist.pruning.pruner import Pruner

_log = logging.getLogger(__name__)
BEST_NAME = "best"
"""Name of the folder of the best checkpoint, beside that of the newest ones."""

_NEXT_TRY = "at the next evaluation that is better than the one kept"


class BestCheckpoint:
    """Keeps one checkpoint: that of the evaluation with the highest score, such as top-1.

    In a phase that prunes, only states count whose masks reach the target and whose masked rows are all dead, so that
    a merge gives the model that was asked for.

    Args:
        folder: Folder of the phase; None to keep nothing.
        cluster: The ranks.
        graph: Trace of the original model; None in a phase that does not prune.
        config: Configuration of the run, saved with the checkpoint for the record.
    """

    def __init__(self, folder: Path | None, cluster: Cluster, graph: Graph | None, config: Config) -> None:
        self._folder = folder / BEST_NAME if folder else None
        self._cluster, self._graph, self._config = cluster, graph, config.to_dict()
        self._score: float | None = None
        self._has_read = False

    def consider(self, state: TrainState, score: Score, pruner: Pruner | None) -> None:
        """Keep a state if it is the best so far. A collective.

        Args:
            state: The state that was evaluated.
            score: Its score on the validation set.
            pruner: Chooses the masks; None if the model has no compactors.
        """
        if self._folder is None:
            return
        if pruner is not None and not pruner.is_pruned():
            return
        if not self._has_read:
            self._score, self._has_read = self._cluster.from_root(lambda: self._earlier_score(score.key))
        if not self._has_read:
            return
        if self._score is not None and score.value <= self._score:
            return
        # A writer of its own for each, so that failures do not add up: a full disk must not end the run for this.
        writer = CheckpointWriter(self._folder, 1, self._cluster, self._graph, self._config, next_try=_NEXT_TRY)
        note: dict[str, Any] = {score.key: score.value}
        writer.save(state, **note)

        def is_written() -> bool:
            writer.wait()
            return writer.write_seconds is not None

        # All ranks have to know: by the score each decides whether it takes part in the next save.
        if self._cluster.from_root(is_written):
            self._score = score.value

    def _earlier_score(self, key: str) -> tuple[float | None, bool]:
        """Return the score of the checkpoint of an earlier start, None without one, and whether that is known."""
        assert self._folder is not None
        try:
            position = CheckpointFolder(self._folder).newest_position()
        except CheckpointError as error:
            # A better one may be in it, which must not be replaced.
            _log.error("%s; this evaluation is not compared with the best one, trying again at the next", error)
            return None, False
        score = position.get(key) if position else None
        return float(score) if isinstance(score, int | float) else None, True
