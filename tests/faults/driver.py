"""Real runs under a launch script: started, harmed, looked at."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.ranks.launcher import REPOSITORY

import psutil

CONFIG = Path(__file__).with_name("config.yaml")
INTERVAL_STEPS = 50
# What a harmed job may take to end on all ranks.
END_SECONDS = 60


class Run:
    """A run in its folder, started as often as it takes; its output goes to one log per start."""

    def __init__(
        self, folder: Path, num_ranks: int, *overrides: str, script: str = "local.sh", workdir=None, **environment: str
    ) -> None:
        self.workdir, self._folder = workdir or folder / "run", folder
        folder.mkdir(parents=True, exist_ok=True)
        self.num_ranks, self._overrides, self._script = num_ranks, overrides, script
        self._environment = environment
        self._num_starts = 0

    def start(self) -> None:
        sets = [argument for override in self._overrides for argument in ("--set", override)]
        environment = {
            **os.environ, **self._environment, "PYTHONPATH": str(REPOSITORY), "RANKS": str(self.num_ranks),
            "CONFIG": str(CONFIG), "WORKDIR": str(self.workdir),
        }  # fmt: skip
        self._num_starts += 1
        self._log_path = self._folder / f"start{self._num_starts}.log"
        with open(self._log_path, "w") as log:
            self.process = subprocess.Popen(
                ["bash", str(REPOSITORY / "launch" / self._script), *sets],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def ranks(self) -> dict[int, psutil.Process]:
        """The living rank processes, by rank."""
        found = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            is_ours = line[2:3] == ["train"] and str(self.workdir) in line
            if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                try:
                    found[int(process.environ()["HOROVOD_RANK"])] = process
                except (psutil.Error, KeyError):
                    continue
        return found

    def wait_for(self, text: str, timeout_seconds: float = 200) -> None:
        """Wait until the log has a line that matches, while the run lives."""
        deadline = time.monotonic() + timeout_seconds
        try:
            while not re.search(text, self.log):
                assert self.process.poll() is None and time.monotonic() < deadline, f"{text}\n{self.log[-4000:]}"
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise

    def signal(self, rank: int, number: signal.Signals) -> bool:
        """Send a rank a signal; false where the rank has come to its end by itself."""
        try:
            self.ranks()[rank].send_signal(number)
        except (KeyError, psutil.NoSuchProcess):
            return False
        return True

    def wait_for_end(self, start: float, limit_seconds: float = END_SECONDS) -> float:
        """Seconds from `start` until the script and all ranks have ended."""
        try:
            self.process.wait(limit_seconds)
            while self.ranks():
                assert time.monotonic() - start < limit_seconds, f"ranks left: {self.ranks()}"
                time.sleep(0.2)
        finally:
            self.stop()
        return time.monotonic() - start

    def finish(self, timeout_seconds: float = 500) -> None:
        """Run to the end."""
        self.start()
        self.wait_until_finished(timeout_seconds)

    def wait_until_finished(self, timeout_seconds: float = 500) -> None:
        """Wait for an end that nobody forces."""
        try:
            code = self.process.wait(timeout_seconds)
        finally:
            self.stop()
        assert code == 0, self.log[-4000:]

    def stop(self) -> None:
        """Leave nothing running, whatever happened."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for process in self.ranks().values():
            process.kill()

    def last_logged_step(self) -> int:
        steps = re.findall(r"prune step (\d+)/", self.log)
        return int(steps[-1]) if steps else 0

    def resumed_step(self) -> int:
        """The step of the pruning phase at which the newest start went on."""
        found = re.search(r"Resumed at step (\d+)", self.log)
        return int(found[1]) if found else 0


def names_the_rank(log: str, rank: int) -> bool:
    """Whether the log says which rank is gone; before the ranks have met only the launcher can."""
    return f"resrep: error: rank {rank} (host " in log or f"Process {rank} exit with status code 137" in log
