"""Checkpoints beside the training: rank 0 copies the state, a thread writes the copy, the steps go on.

At most one write is under way. A save that comes while the one before is still being written waits for it, so
the newest whole checkpoint is never older than the last but one that was due.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.files import CheckpointFolder, snapshot
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError

import tensorflow as tf

_log = logging.getLogger(__name__)
_MAX_FAILED_CHECKPOINTS = 3
_NEW = {"step": 0, "num_chosen": 0, "layout": None}


class Checkpointing:
    """Saves and restores the state of one phase of a run. All ranks have one; rank 0 alone touches files.

    Args:
        folder: where the checkpoints are; none where nothing is written.
        variables: the state, by name. Rank 0 has copied it when `save` returns.
    """

    def __init__(
        self, folder: Path | None, num_kept: int, variables: Mapping[str, tf.Variable], cluster: Cluster
    ) -> None:
        self._folder = CheckpointFolder(folder, num_kept) if folder else None
        self._variables, self._cluster = variables, cluster
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[float | None] | None = None
        # The step that was handed over last, and how many in a row could not be written up to it.
        self._step, self._num_failed = 0, 0
        self.write_seconds: float | None = None
        """What the last one took, on rank 0; none before the first, and where it could not be written."""

    def restore(self, prepare: Callable[[dict[str, Any]], None] = lambda position: None) -> dict[str, Any]:
        """Load the newest whole checkpoint on rank 0; all ranks get `step`, `num_chosen` and `layout`. A collective.

        Args:
            prepare: gets the position on rank 0 before anything is loaded, and may change what is in the mapping of
                the variables.
        """
        return self._cluster.from_root(lambda: self._restore(prepare))

    def save(self, step: int, position: Mapping[str, Any], *, is_last: bool = False) -> None:
        """Copy the state as it stands and let it be written; a collective.

        Args:
            position: where the run stands, as JSON.
            is_last: nothing comes after it, so it is waited for.

        Raises:
            CheckpointWriteError: on all ranks, when the last three that were written before failed, or the one
                that is the last. Up to that a failure is logged when it happens, and the next save tries again.
        """
        if self._folder is None:
            return
        # What became of the one before travels with this one: no rank waits for the disk to hear it.
        failed = self._cluster.from_root(lambda: self._hand_over(step, position, is_last))
        if failed["num"] >= _MAX_FAILED_CHECKPOINTS or (is_last and failed["num"]):
            raise CheckpointWriteError(
                f"step {failed['step']}: {failed['num']} checkpoint(s) in a row could not be written, "
                "see the errors above; mend that and start the same command again"
            )

    def wait(self) -> None:
        """Let the write that is under way end, on rank 0; no collective."""
        if self._writing is not None:
            self.write_seconds = self._writing.result()
            self._writing = None
            self._num_failed = 0 if self.write_seconds is not None else self._num_failed + 1

    def _restore(self, prepare: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        position = None
        if self._folder:
            self._folder.delete_partial()
            position = self._folder.restore_newest(self._variables, prepare=prepare)
        return {key: position.get(key) for key in _NEW} if position else _NEW

    def _hand_over(self, step: int, position: Mapping[str, Any], is_last: bool) -> dict[str, int]:
        if self._writing is not None and not self._writing.done():
            self._wait_and_say(step)
        self.wait()
        # The last one is tried whatever came before: there will be no other.
        if is_last or self._num_failed < _MAX_FAILED_CHECKPOINTS:
            self._step = step
            self._writing = self._executor.submit(self._write, step, snapshot(self._variables), position)
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
        """The seconds that it took; none where it could not be written."""
        assert self._folder is not None
        start = time.monotonic()
        try:
            self._folder.save(step, arrays, position)
        except CheckpointWriteError as error:
            _log.error("%s; trying again at the next interval", error)
            return None
        return time.monotonic() - start
