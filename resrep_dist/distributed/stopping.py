"""How a run is asked to stop: by a signal, or by a file in its folder."""

import contextlib
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
# A launcher that stops its ranks sends its own signal after that of the user, which is not a second request.
_SAME_WISH_SECONDS = 1.0
# A file that is older than the start was made for an earlier run. The tolerance is for a file that was made while a
# launcher started this process, and for the clocks of other hosts and of file servers.
_START_TIME, _STALE_SECONDS = time.time(), 30.0
# Interval for looking for the file, independent of the time of a step, since it may be on a network file system.
LOOK_SECONDS = 0.5


class StopRequest:
    """Set by SIGTERM, SIGUSR1, Ctrl-C, or a file named `stop` in the folder of the run.

    Inside `with` the first signal only sets the request, and a second one ends the process at once. That damages no
    file, since each is written under another name and then renamed. Launchers that kill their processes within seconds
    leave no time for a checkpoint. So `launch/local.sh` does not pass the signal on, and creates a file whose name only
    its own ranks know, RESREP_STOP: another start by mistake must not stop the job that has the folder.

    Args:
        folder: Folder of the run; None to react to signals only. The command line and `prune` hold its lease.
    """

    def __init__(self, folder: Path | None) -> None:
        # The user's file, then that of the script which started this process.
        names = filter(None, ("stop", os.environ.get("RESREP_STOP")))
        self._files = [folder / name for name in names] if folder else []
        self._signal_time: float | None = None
        self._has_file, self._next_look_time = False, 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self._files:
            self._delete_stale(self._files[0])
        # Python allows signal handlers only in the main thread. Training in another thread can be stopped by the file.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for file in self._files:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    @staticmethod
    def _delete_stale(file: Path) -> None:
        # Ranks may start long after their script, which has told its time.
        start_time = float(os.environ.get("RESREP_START_TIME", _START_TIME))
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < start_time - _STALE_SECONDS:
                file.unlink()

    def is_set(self) -> bool:
        """Return True if the run was asked to stop."""
        now = time.monotonic()
        if self._files and now >= self._next_look_time:
            self._has_file, self._next_look_time = any(map(os.path.exists, self._files)), now + LOOK_SECONDS
        return self._signal_time is not None or self._has_file

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal_time is None:
            self._signal_time = now
            # Logged as an error, so that it is shown on every rank.
            _log.error("%s: stopping after a checkpoint; a second signal stops at once.", signal.Signals(number).name)
        elif now - self._signal_time > _SAME_WISH_SECONDS:
            os._exit(128 + number)
