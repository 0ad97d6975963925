"""Ends a process that makes no progress: a thread that waits in a collective cannot be interrupted."""

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
# Rank 0 knows most about the others; they let it speak first.
_OTHERS_WAIT_SECONDS = 3.0


class Watchdog:
    """Told of every step and every batch of an evaluation; without them for too long it ends the process."""

    def __init__(self, is_root: bool, presence: Presence | None) -> None:
        self._presence = presence
        self._wait_seconds = 0.0 if is_root else _OTHERS_WAIT_SECONDS
        self._is_patient, self._has_warned = False, False
        self._quiet_seconds = 0.0
        self._step: int | None = None

    @contextlib.contextmanager
    def watching(self, config: FaultsConfig) -> Iterator[None]:
        """Watch what happens inside `with`: training. The first step may take long, since it compiles."""
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
        """The long limit, for what rank 0 does alone in the middle of training."""
        before, self._is_patient = self._is_patient, True
        self.beat()
        try:
            yield
        finally:
            self.beat()
            self._is_patient = before

    def beat(self, step: int | None = None) -> None:
        """Progress: a step begins, or a part of an evaluation is done."""
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
