"""How a run is asked to stop: a signal, or a file in its folder."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A launcher that stops its ranks sends its own signal behind the user's; that is no second wish.
_SAME_WISH_SECONDS = 1.0
# A file that is older than this process was meant for an earlier run; one made while a launcher was starting is not.
_START_TIME, _STALE_SECONDS = time.time(), 30.0
# How often the file is looked for, whatever a step takes: it may lie on a network file system.
LOOK_SECONDS = 0.5


class StopRequest:
    """Set by SIGTERM, SIGUSR1, Ctrl-C, or a file named `stop` in the run's folder.

    Inside `with` the first signal only sets it; a second one ends the process at once. That harms no file,
    since each is written beside its place and renamed. Launchers that kill within seconds leave no time for a
    checkpoint: `launch/local.sh` keeps the signal from them and makes the file.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / "stop" if folder else None
        self._signal_time: float | None = None
        self._has_file, self._next_look_time = False, 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        # The scripts under launch/ have deleted an earlier run's, and ranks may start long after them.
        is_trusted = "RESREP_SCRIPT" in os.environ
        if self._file and not is_trusted and self._file.exists():
            self._delete_stale(self._file)
        # Python allows handlers in the main thread only; a program that trains in another one has the file.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._file:
            self._file.unlink(missing_ok=True)

    @staticmethod
    def _delete_stale(file: Path) -> None:
        if file.stat().st_mtime < _START_TIME - _STALE_SECONDS:
            file.unlink()

    def is_set(self) -> bool:
        """True once somebody has asked."""
        now = time.monotonic()
        if self._file is not None and now >= self._next_look_time:
            self._has_file, self._next_look_time = self._file.exists(), now + LOOK_SECONDS
        return self._signal_time is not None or self._has_file

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal_time is None:
            self._signal_time = now
            # As an error, so that it shows on every rank.
            _log.error("%s: stopping after a checkpoint; a second signal stops at once.", signal.Signals(number).name)
        elif now - self._signal_time > _SAME_WISH_SECONDS:
            os._exit(128 + number)
