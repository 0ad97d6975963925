"""A Slurm cluster of two nodes on this machine: munged, slurmctld and two slurmd, all files in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.ranks.launcher import REPOSITORY

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
# Two nodes are two slurmd with a port each; PMIx needs a folder for each, hence %n in TmpFS.
CONFIGURATION = """
ClusterName=resrep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MailProg=/bin/true
SchedulerParameters=sched_interval=1,sched_min_interval=1
GresTypes=tape
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=2000 Gres=tape:1
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Up inside `with`; afterwards no process and no file of it is left."""

    def __enter__(self) -> "SlurmCluster":
        # Not below pytest's folder: munged wants every folder on the way to its socket open to all.
        self.folder = Path(tempfile.mkdtemp(prefix="resrep-slurm-"))
        self.folder.chmod(0o755)
        self._daemons: list[subprocess.Popen] = []
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) > 1:
            self.call("scancel", "--user=root")
            self.wait_until(lambda: not self.call("squeue", "--noheader") and not self._steps(), 60)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # One slurmstepd for each job and step outlives slurmd by a moment.
        for step in self._steps():
            step.kill()
        shutil.rmtree(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """What a command of Slurm prints."""
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        return result.stdout.strip()

    def sbatch(self, *arguments: object, **variables: str) -> str:
        """Submit in the repository's root as a user does; returns the job's number."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        environment = {**self.environment, **variables}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol` says of a job; of an array, of its first task."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, job: str, timeout_seconds: float = 240) -> str:
        """The state that a job, or an array of jobs, ends in."""
        self.wait_until(lambda: job not in self.call("squeue", "--noheader", "--format=%A %F").split(), timeout_seconds)
        return self.state(job)["JobState"]

    def wait_until(self, condition, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of the daemons' logs and the queue."""
        ends = [f"== {path}\n{path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.log")]
        return "\n".join([*ends, self.call("squeue"), self.call("sinfo")])

    def _start(self) -> None:
        for name in ("munge", "state", "spool-n1", "spool-n2", "tmp-n1", "tmp-n2"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(64))
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(host=host, folder=self.folder, ports=_free_ports(3))
        (self.folder / "slurm.conf").write_text(text)
        # Something to ask for by --gres that this machine need not have.
        (self.folder / "gres.conf").write_text("Name=tape Count=1\n")
        munge = [f"--{name}-file={self.folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", f"--socket={self.folder}/munge/socket", *munge)
        self.wait_until((self.folder / "munge" / "socket").exists, 20)
        self._daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        self.wait_until(lambda: self.call("sinfo", "--noheader", "--format=%D %t") == "2 idle", 60)

    def _steps(self) -> list[psutil.Process]:
        """Those that have a log of this cluster open."""
        found = []
        for process in psutil.process_iter(["name"]):
            try:
                if process.info["name"] == "slurmstepd" and any(
                    file.path.startswith(f"{self.folder}/") for file in process.open_files()
                ):
                    found.append(process)
            except psutil.Error:  # it ended meanwhile
                pass
        return found

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "a") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, start_new_session=True)
        self._daemons.append(process)


def _free_ports(count: int) -> list[int]:
    """Ports in a row that nobody listens on."""
    for first in range(17000, 32000, 10):
        try:
            for port in range(first, first + count):
                with socket.socket() as candidate:
                    candidate.bind(("127.0.0.1", port))
            return list(range(first, first + count))
        except OSError:
            continue
    raise AssertionError("no free ports")
