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
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels

_log = logging.getLogger(__name__)
_MAX_FAILED_CHECKPOINTS = 3
_NEW = {"step": 0, "num_chosen": 0, "layout": None}


class CheckpointWriter:
    """Saves and restores the state of one phase of a run. All ranks have one; only rank 0 touches files.

    Attributes:
        write_seconds: time that the last write took, on rank 0; None before the first, and if it failed.

    Args:
        folder: of the checkpoints; None writes nothing.
        num_kept: the newest ones that are kept.
        graph: of the original model; None in a phase that does not prune.
        config: the run's configuration, kept with each checkpoint for the record.
    """

    def __init__(
        self,
        folder: Path | None,
        num_kept: int,
        cluster: Cluster,
        graph: Graph | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = CheckpointFolder(folder, num_kept) if folder else None
        self._cluster, self._graph, self._config = cluster, graph, config
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[float | None] | None = None
        # The step that was handed over last, and how many in a row could not be written up to it.
        self._step, self._num_failed = 0, 0
        self.write_seconds: float | None = None

    def restore(self, state_at: Callable[[KeptChannels | None], TrainState]) -> TrainState:
        """The state of the newest whole checkpoint, on all ranks; that of a new run if there is none. A collective.

        Args:
            state_at: makes a state with these channels, on every rank, for values to be loaded into.
        """
        states: list[TrainState] = []

        def variables_at(position: Mapping[str, Any]) -> TrainState:
            # Called once more for each damaged checkpoint that is passed over.
            states[:] = [state_at(self._channels(position))]
            return states[0]

        position = self._cluster.from_root(lambda: self._restore(variables_at))
        state = states[0] if states else state_at(self._channels(position))
        state.step, state.num_chosen = position["step"], position["num_chosen"]
        state.share(self._cluster)
        return state

    def save(self, state: TrainState, *, is_last: bool = False) -> None:
        """Copy the state as it stands and let it be written; a collective.

        Args:
            is_last: nothing comes after it, so it is waited for.

        Raises:
            CheckpointWriteError: on all ranks, if the last three that were written before failed, or the one
                that is the last. Up to that a failure is logged when it happens, and the next save tries again.
        """
        if self._folder is None:
            return
        position = {
            "num_chosen": state.num_chosen,
            "layout": state.channels.to_json(self._graph) if state.channels and self._graph else None,
            "config": self._config,
        }
        # What became of the one before travels with this one: no rank waits for the disk to hear it.
        failed = self._cluster.from_root(lambda: self._hand_over(state, position, is_last))
        if failed["num"] >= _MAX_FAILED_CHECKPOINTS or (is_last and failed["num"]):
            raise CheckpointWriteError(
                f"step {failed['step']}: {failed['num']} checkpoint(s) in a row could not be written, "
                "see the errors above; fix that and start the same command again"
            )

    def wait(self) -> None:
        """Let the write that is under way end, on rank 0; no collective."""
        if self._writing is not None:
            self.write_seconds = self._writing.result()
            self._writing = None
            self._num_failed = 0 if self.write_seconds is not None else self._num_failed + 1

    def _restore(self, variables_at: Callable[[dict[str, Any]], TrainState]) -> dict[str, Any]:
        position = None
        if self._folder:
            self._folder.delete_partial()
            position = self._folder.restore_newest(variables_at)
        return {key: position.get(key) for key in _NEW} if position else _NEW

    def _hand_over(self, state: TrainState, position: Mapping[str, Any], is_last: bool) -> dict[str, int]:
        if self._writing is not None and not self._writing.done():
            self._wait_and_say(state.step)
        self.wait()
        # The last one is tried whatever came before: there will be no other.
        if is_last or self._num_failed < _MAX_FAILED_CHECKPOINTS:
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
        """Seconds that it took; None if it could not be written."""
        assert self._folder is not None
        start = time.monotonic()
        try:
            self._folder.save(step, arrays, position)
        except CheckpointWriteError as error:
            _log.error("%s; trying again at the next interval", error)
            return None
        return time.monotonic() - start

    def _channels(self, position: Mapping[str, Any]) -> KeptChannels | None:
        return KeptChannels.from_json(self._graph, position.get("layout")) if self._graph else None
