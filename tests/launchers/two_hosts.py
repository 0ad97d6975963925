"""Two hosts on this machine: network namespaces with a name, mounts and an SSH server of their own, and a cable."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

TOOLS = ("ip", "unshare", "sshd", "ssh-keygen")
ADDRESSES = ("10.9.0.1", "10.9.0.2")
_SERVER = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/sshd.pid
PermitRootLogin yes
StrictModes no
UsePAM no
"""
_CLIENT = """
IdentityFile {folder}/key
UserKnownHostsFile {folder}/known_hosts
StrictHostKeyChecking no
LogLevel ERROR
"""


class TwoHosts:
    """Up inside `with`; afterwards no process, namespace or file of them is left.

    Args:
        setup: shell commands that the second host runs first, as mounts that only it sees.
    """

    def __init__(self, setup: str = "true") -> None:
        self._setup = setup

    def __enter__(self) -> "TwoHosts":
        self.folder = Path(tempfile.mkdtemp(prefix="resrep-hosts-"))
        self._names = [f"resrep{os.getpid()}-{number}" for number in (1, 2)]
        self._server: subprocess.Popen | None = None
        lines = [f"{address} host{number}\n" for number, address in enumerate(ADDRESSES, 1)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        try:
            self._connect()
            self._start_ssh()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            self._server.terminate()
            self._server.wait(20)
        for name in self._names:
            # Also what a launcher left running there.
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            subprocess.run(["kill", "-KILL", *pids], capture_output=True)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        shutil.rmtree(self.folder)

    @property
    def prefix(self) -> list[str]:
        """In front of a command, runs it on the first host."""
        script = f'{self._identity("host1")}; exec "$@"'
        return ["ip", "netns", "exec", self._names[0], "unshare", "--uts", "--mount", "sh", "-ec", script, "-"]

    @property
    def variables(self) -> dict[str, str]:
        """For a launch script: both hosts, and an `ssh` that knows the key."""
        return {
            "HOSTS": ",".join(f"{address}:1" for address in ADDRESSES),
            "PATH": f"{self.folder}:{os.environ['PATH']}",
        }

    def limit(self, rate: str) -> None:
        """Let no more through the cable, in either direction; `tc` knows the unit."""
        for name in self._names:
            limits = ("rate", rate, "burst", "64kb", "latency", "50ms")
            _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "net0", "root", "tbf", *limits)

    def _identity(self, name: str) -> str:
        """Shell commands that give a host its name; Gloo wants to find the address of its own."""
        return f"hostname {name}; mount --bind {self.folder}/hosts /etc/hosts"

    def _connect(self) -> None:
        for name in self._names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        first, second = self._names
        _run("ip", "-n", first, "link", "add", "net0", "type", "veth", "peer", "name", "net0", "netns", second)
        for name, address in zip(self._names, ADDRESSES, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "net0")
            _run("ip", "-n", name, "link", "set", "net0", "up")

    def _start_ssh(self) -> None:
        for key in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        (self.folder / "sshd_config").write_text(_SERVER.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(_CLIENT.format(folder=self.folder))
        client = self.folder / "ssh"
        client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        client.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        script = (
            f"{self._identity('host2')}; {self._setup}; exec {shutil.which('sshd')} -D -e -f {self.folder}/sshd_config"
        )
        with open(self.folder / "sshd.log", "w") as log:
            self._server = subprocess.Popen(
                ["ip", "netns", "exec", self._names[1], "unshare", "--uts", "--mount", "sh", "-ec", script],
                stdout=log, stderr=log,
            )  # fmt: skip
        _run(
            *self.prefix,
            "sh",
            "-c",
            f"for i in 1 2 3 4 5 6 7 8 9; do {client} {ADDRESSES[1]} true && exit; sleep 0.5; done; exit 1",
        )


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
