"""Ends a process that makes no progress.

If a rank fails, the others wait in a collective. Python cannot interrupt a thread there, neither by an exception nor by
a signal handler. So another thread measures the time without progress, and ends the process when it is too long.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from resrep_dist.config.schema import FaultsConfig
from resrep_dist.distributed.environment import leave
from resrep_dist.distributed.presence import RESUME_HINT, Presence
from resrep_dist.errors import StalledError

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 0.5
# The other ranks wait longer, since rank 0 knows most about all ranks and should print its message first.
_OTHERS_WAIT_SECONDS = 3.0


class Watchdog:
    """Ends this process if there is no progress for too long.

    `beat` reports progress, at each step and each batch of an evaluation.

    Args:
        is_root: True on rank 0.
        presence: Knows which ranks are behind; None on one rank.
    """

    def __init__(self, is_root: bool, presence: Presence | None) -> None:
        self._presence = presence
        self._wait_seconds = 0.0 if is_root else _OTHERS_WAIT_SECONDS
        self._is_patient, self._has_warned = False, False
        self._quiet_seconds = 0.0
        self._step: int | None = None

    @contextlib.contextmanager
    def watching(self, config: FaultsConfig) -> Iterator[None]:
        """Watch training inside `with`. The long limit applies to the first step, which compiles.

        Args:
            config: The limits.
        """
        self._step, self._is_patient = None, True
        self.beat()
        is_over = threading.Event()
        threading.Thread(target=self._watch, args=(config, is_over), name="watchdog", daemon=True).start()
        if self._presence:
            self._presence.silence_limit_seconds = config.stall_limit_seconds
        try:
            yield
        finally:
            is_over.set()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Apply the long limit inside `with`, for what rank 0 does alone during training."""
        before, self._is_patient = self._is_patient, True
        self.beat()
        try:
            yield
        finally:
            self.beat()
            self._is_patient = before

    def beat(self, step: int | None = None) -> None:
        """Report progress: a step begins, or a part of an evaluation is done.

        Args:
            step: Number of the step that begins; None for other progress.
        """
        self._quiet_seconds, self._has_warned = 0.0, False
        if step is not None:
            self._is_patient, self._step = self._step is None, step
            if self._presence:
                self._presence.step = step

    def _watch(self, config: FaultsConfig, is_over: threading.Event) -> None:
        last_time = time.monotonic()
        while not is_over.wait(_INTERVAL_SECONDS):
            now = time.monotonic()
            # Time in which this process itself was stopped does not count.
            self._quiet_seconds += min(now - last_time, 2 * _INTERVAL_SECONDS)
            last_time = now
            limit_seconds = config.long_limit_seconds if self._is_patient else config.stall_limit_seconds
            if self._quiet_seconds > limit_seconds + self._wait_seconds:
                leave(StalledError.exit_code, f"no progress {self._describe()}; {RESUME_HINT}")
            if self._quiet_seconds > config.stall_warning_seconds and not self._has_warned:
                self._has_warned = True
                _log.warning("No progress %s.", self._describe())

    def _describe(self) -> str:
        place = "the first step" if self._step is None else f"step {self._step}"
        others = f"; {self._presence.describe()}" if self._presence else ""
        return f"for {self._quiet_seconds:.0f} s in {place}{others}"
