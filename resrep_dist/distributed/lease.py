"""Lets only one job write to a folder, by a file that rank 0 renews while the job lives.

A lock of the operating system would not do: on network file systems locks can be missing or valid for one host only,
and the lock of a lost host can remain. A lease that is not renewed expires.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrep_dist.distributed.environment import leave, namespace_id
from resrep_dist.errors import UserError

import psutil

if TYPE_CHECKING:
    from resrep_dist.distributed.cluster import Cluster

_log = logging.getLogger(__name__)
NAME = "lease.json"
RENEW_SECONDS, STALE_SECONDS = 10.0, 60.0
# A process that takes over a lease waits this long and checks it again: if two do so at once, the later one holds it.
_SETTLE_SECONDS = 1.0


class Lease:
    """The right to write to a folder, held by one process.

    It is taken over at once from a process on this host that has died, and from the same Slurm job on another host,
    which was requeued, so its first start has ended. It is taken over from any other holder if it was not renewed for
    `STALE_SECONDS`. Its age is computed from times of the file system only, since the clocks of two hosts may differ.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._token = secrets.token_hex(8)
        self._is_released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self) -> None:
        """Take the lease, and renew it in a thread from now on.

        Raises:
            UserError: If another job holds it, or it cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._create()
            except FileExistsError:
                self._take_over()
        except OSError as error:
            raise UserError(
                f"--workdir {self._folder}: {NAME} cannot be written there ({error.strerror}); make room or give a "
                "folder that rank 0 may write to"
            ) from None
        self._thread.start()

    def release(self) -> None:
        """Release the lease, so that the next job can take it."""
        self._is_released.set()
        self._thread.join(RENEW_SECONDS)
        if self._is_mine():
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _create(self) -> None:
        """Create the file if there is none. Only one of two processes can, also on network file systems."""
        with open(self._path, "x", encoding="utf-8") as file:
            json.dump(self._describe_this_process(), file)

    def _take_over(self) -> None:
        mine = self._path.with_name(f".{NAME}.{self._token}")
        try:
            mine.write_text(json.dumps(self._describe_this_process()), encoding="utf-8")
            holder, age_seconds = self._read(), self._age_seconds(mine)
            reason = _reason_to_take_over(holder, age_seconds)
            if reason is None:
                raise UserError(
                    f"--workdir {self._folder}: in use by {_name(holder)}, which renewed {NAME} {age_seconds:.0f} s "
                    "ago; stop that job or use another --workdir; if it is dead, start again in "
                    f"{STALE_SECONDS - age_seconds + 1:.0f} s"
                )
            _log.warning("--workdir %s: taken over from %s, since %s.", self._folder, _name(holder), reason)
            os.replace(mine, self._path)
        finally:
            mine.unlink(missing_ok=True)
        time.sleep(_SETTLE_SECONDS)
        if not self._is_mine():
            raise UserError(f"--workdir {self._folder}: {_name(self._read())} has just taken it over as well")

    def _renew(self) -> None:
        while not self._is_released.wait(RENEW_SECONDS):
            try:
                self._create()  # succeeds only if the file was deleted
            except FileExistsError:
                if not self._is_mine():
                    leave(UserError.exit_code, f"--workdir {self._folder}: taken over by {_name(self._read())}")
                with contextlib.suppress(OSError):
                    os.utime(self._path)
            except OSError as error:
                _log.warning("%s: cannot be renewed (%s)", self._path, error.strerror)

    def _is_mine(self) -> bool:
        try:
            return json.loads(self._path.read_text(encoding="utf-8")).get("token") == self._token
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            # An error of the disk does not mean that another job has taken it over.
            return True

    def _read(self) -> dict[str, Any]:
        try:
            holder = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            holder = {}
        return holder if isinstance(holder, dict) else {}

    def _age_seconds(self, now: Path) -> float:
        try:
            return max(0.0, now.stat().st_mtime - self._path.stat().st_mtime)
        except OSError:
            return STALE_SECONDS + 1

    def _describe_this_process(self) -> dict[str, Any]:
        return {
            "token": self._token,
            "host": socket.gethostname(),
            "namespace": namespace_id("pid"),
            "process": os.getpid(),
            "process_start_time": psutil.Process().create_time(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "slurm_restart_count": _slurm_restart_count(),
            "start_time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }


@contextlib.contextmanager
def hold_lease(workdir: Path, cluster: "Cluster") -> Iterator[None]:
    """Hold the lease of a folder inside `with`. A collective on entry.

    Args:
        workdir: The folder.
        cluster: The ranks; rank 0 holds the lease.

    Raises:
        UserError: On every rank, if another job holds it.
    """
    lease = Lease(workdir)
    cluster.from_root(lease.take)
    try:
        yield
    finally:
        if cluster.is_root:
            lease.release()


def _reason_to_take_over(holder: dict[str, Any], age_seconds: float) -> str | None:
    if age_seconds > STALE_SECONDS:
        return f"it was not renewed for {age_seconds:.0f} s"
    if holder.get("namespace") is not None and holder["namespace"] == namespace_id("pid"):
        return None if _is_alive(holder) else "that process is dead"
    job = os.environ.get("SLURM_JOB_ID")
    restarts = holder.get("slurm_restart_count", 0)
    # The same job without another start may be a second command beside a run that lives.
    if job is not None and holder.get("slurm_job_id") == job and _slurm_restart_count() > restarts:
        return f"this is the same Slurm job, {job}, started again"
    return None


def _slurm_restart_count() -> int:
    """How often Slurm has started this job again, as after a requeue."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdigit() else 0


def _is_alive(holder: dict[str, Any]) -> bool:
    try:
        # The process number alone is not enough, since the system may have used it again.
        return abs(psutil.Process(holder["process"]).create_time() - holder["process_start_time"]) < 1.0
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, KeyError, TypeError, ValueError):
        return True


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "an unknown job"
    job = f", Slurm job {holder['slurm_job_id']}" if holder.get("slurm_job_id") else ""
    return f"process {holder.get('process')} on host {holder.get('host')}{job}, started {holder.get('start_time')}"
