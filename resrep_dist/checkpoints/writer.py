"""Writes checkpoints while training continues: rank 0 copies the state, and a thread writes the copy.

At most one checkpoint is being written. A save that comes earlier than its end waits for it. So at any time the newest
complete checkpoint is at most one behind the one being written.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.files import CheckpointFolder, snapshot
from resrep_dist.checkpoints.same_data import check_same_data
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels

_log = logging.getLogger(__name__)
MAX_FAILED_CHECKPOINTS = 3
"""Number of checkpoints in a row whose failed writes end a run."""
_NEW = {"step": 0, "num_chosen": 0, "layout": None, "early_merge": None}


class CheckpointWriter:
    """Saves and restores the state of one phase of a run. All ranks have one; only rank 0 accesses files.

    Attributes:
        write_seconds: Time that the last write took on rank 0; None before the first, and if it failed.

    Args:
        folder: Folder of the checkpoints; None to write nothing.
        num_kept: Number of checkpoints that are kept.
        cluster: The ranks.
        graph: Trace of the original model; None in a phase that does not prune.
        config: Configuration of the run, saved with each checkpoint for the record.
        data: For each set its fingerprint, saved with each checkpoint and compared when a run resumes.
        accepts_changed_data: True to resume with other data than before, which is logged.
        next_try: When the caller saves again, for the log if a write fails.
    """

    def __init__(
        self,
        folder: Path | None,
        num_kept: int,
        cluster: Cluster,
        graph: Graph | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        accepts_changed_data: bool = False,
        next_try: str = "at the next interval",
    ) -> None:
        self._folder = CheckpointFolder(folder, num_kept) if folder else None
        self._cluster, self._graph, self._config = cluster, graph, config
        self._data, self._accepts_changed_data, self._next_try = data, accepts_changed_data, next_try
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[float | None] | None = None
        # Step of the last checkpoint passed to the thread, and the number of failed writes in a row before it.
        self._step, self._num_failed = 0, 0
        self.write_seconds: float | None = None

    def has_any(self) -> bool:
        """Return whether there is a checkpoint. A collective."""
        return self._cluster.from_root(lambda: self._folder is not None and self._folder.newest_step() is not None)

    def restore(self, state_at: Callable[[KeptChannels | None], TrainState]) -> TrainState:
        """Return the state of the newest good checkpoint on all ranks, or a new state if there is none. A collective.

        Args:
            state_at: Creates a state with the given channels, on every rank, into which values are loaded.

        Raises:
            CheckpointError: On every rank, if all checkpoints are damaged, or the newest is of another model.
            DataError: On every rank, if the data is not the one that the checkpoint was trained on.
        """
        states: list[TrainState] = []

        def variables_at(position: Mapping[str, Any]) -> TrainState:
            # Called again for each damaged checkpoint that is skipped.
            states[:] = [state_at(self._channels(position))]
            return states[0]

        position = self._cluster.from_root(lambda: self._restore(variables_at))
        state = states[0] if states else state_at(self._channels(position))
        state.step, state.num_chosen = position["step"], position["num_chosen"]
        state.early_merge = position["early_merge"]
        state.share(self._cluster)
        return state

    def save(self, state: TrainState, *, is_last: bool = False, **notes: Any) -> None:
        """Copy the current state and start to write it. A collective.

        A write that fails is logged, and the next save tries again, up to three times in a row.

        Args:
            state: The state.
            is_last: True if no other follows: the write is then waited for, and must not fail.
            **notes: What else is noted with the state, as JSON values: `is_end`, True if the phase is done; `top1`.

        Raises:
            CheckpointWriteError: On every rank, if the last three writes failed, or the write of the last checkpoint.
        """
        if self._folder is None:
            return
        position = {
            "num_chosen": state.num_chosen,
            "layout": state.channels.to_json(self._graph) if state.channels and self._graph else None,
            "early_merge": state.early_merge,
            "config": self._config,
            "data": self._data,
            **notes,
        }
        # The result of the previous write is sent with this one, so no rank waits for the disk.
        failed = self._cluster.from_root(lambda: self._hand_over(state, position, is_last))
        if failed["num"] >= MAX_FAILED_CHECKPOINTS or (is_last and failed["num"]):
            raise CheckpointWriteError(
                f"step {failed['step']}: {failed['num']} checkpoint(s) in a row could not be written, "
                "see the errors above; fix that and start the same command again"
            )

    def wait(self) -> None:
        """Wait for the write in progress, on rank 0. Not a collective."""
        if self._writing is not None:
            self.write_seconds = self._writing.result()
            self._writing = None
            self._num_failed = 0 if self.write_seconds is not None else self._num_failed + 1

    def _restore(self, variables_at: Callable[[dict[str, Any]], TrainState]) -> dict[str, Any]:
        position = None
        if self._folder:
            self._folder.delete_partial()
            position = self._folder.restore_newest(variables_at)
        if position:
            accepts = self._accepts_changed_data
            check_same_data(position.get("data"), self._data, position["step"], accepts_change=accepts)
        return {key: position.get(key) for key in _NEW} if position else _NEW

    def _hand_over(self, state: TrainState, position: Mapping[str, Any], is_last: bool) -> dict[str, int]:
        # The last checkpoint waits for the one before as it waits for itself, which says nothing of the interval.
        if self._writing is not None and not self._writing.done() and not is_last:
            self._wait_and_say(state.step)
        self.wait()
        # The last one is written even after failures, since there will be no other.
        if is_last or self._num_failed < MAX_FAILED_CHECKPOINTS:
            self._step = state.step
            self._writing = self._executor.submit(self._write, state.step, snapshot(state), position)
        if is_last:
            self.wait()
        return {"num": self._num_failed, "step": self._step}

    def _wait_and_say(self, step: int) -> None:
        start = time.monotonic()
        _log.warning("Step %d waits: the checkpoint of step %d is still being written.", step, self._step)
        assert self._writing is not None
        self._writing.exception()
        _log.warning(
            "It took %.1f s longer than the next one was due; checkpoint.interval_steps may be too low for this disk.",
            time.monotonic() - start,
        )

    def _write(self, step: int, arrays: Mapping[str, Any], position: Mapping[str, Any]) -> float | None:
        """Write a checkpoint; return the time it took, None if it failed."""
        assert self._folder is not None
        start = time.monotonic()
        try:
            self._folder.save(step, arrays, position)
        except CheckpointWriteError as error:
            _log.error("%s; trying again %s", error, self._next_try)
            return None
        return time.monotonic() - start

    def _channels(self, position: Mapping[str, Any]) -> KeptChannels | None:
        return KeptChannels.from_json(self._graph, position.get("layout")) if self._graph else None
