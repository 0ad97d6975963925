"""Detects lost ranks by a connection from every rank to rank 0, which the operating system closes when a process dies.

A killed rank is detected within milliseconds. Files in a shared folder would need many seconds of silence, and a folder
that all hosts share. Each rank sends one number per second, the step that it has begun. So a host that is lost, whose
connections nobody closes, is detected by its silence, and messages can name the ranks that are behind.

Rank 0's port is open only while the ranks connect. Both sides prove that they know a secret, which rank 0 has sent over
Horovod's own connections, see `handshake`. Other programs learn nothing with which they could connect.
"""

import atexit
import contextlib
import dataclasses
import ipaddress
import logging
import math
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from resrep_dist.distributed.environment import before_leaving, leave, namespace_id
from resrep_dist.distributed.handshake import prove_as_rank, prove_as_root
from resrep_dist.errors import RankLostError, StalledError

import psutil

_log = logging.getLogger(__name__)
_NUMBER = struct.Struct("!q")
# Sent instead of a step: this rank ends as planned, and this rank ends by an error that it has printed.
_LEFT, _FAILED = -1, -2
_INTERVAL_SECONDS = 1.0
# A rank that is silent for this long is named in warnings.
_SILENT_SECONDS = 5.0
# Limits for all ranks to connect, for one attempt to connect to an address, and for one wait of rank 0 for a rank.
_FIND_SECONDS, _CONNECT_SECONDS, _ACCEPT_SECONDS = 30.0, 3.0, 0.1
_MAX_HANDSHAKES = 64
# Time for a rank to end by itself after another one has printed an error.
_GRACE_SECONDS = 3.0
_GOODBYE_SECONDS = 1.0
RESUME_HINT = "start the same command again to resume from the last checkpoint"


@dataclasses.dataclass
class _Peer:
    rank: int
    place: str
    connection: socket.socket
    step: int = 0
    silent_seconds: float = 0.0
    received: bytes = b""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.place})"


class Presence:
    """Watches the other ranks in a thread: rank 0 watches all of them, the others watch rank 0.

    If a rank disappears without a message, this process prints one line and ends with `RankLostError.exit_code`.

    Attributes:
        step: The step that this rank has begun, which is sent to the others.
        silence_limit_seconds: After this time without a sign of life (a lost host, a stopped process) a rank counts as
            stalled, and this process ends with `StalledError.exit_code`.

    Args:
        rank: Number of this rank.
        size: Number of ranks.
        from_root: Calls a function on rank 0 and returns its value on all ranks; see `Cluster.from_root`.
    """

    def __init__(self, rank: int, size: int, from_root: Callable[[Callable[[], Any]], Any]) -> None:
        self.step = 0
        self.silence_limit_seconds = math.inf
        self._is_leaving = False
        self._end_time: float | None = None
        listener: list[socket.socket] = []
        offer = from_root(lambda: _listen(listener))
        self._peers = _accept(listener[0], size - 1, offer) if rank == 0 else _connect(rank, offer)
        before_leaving(lambda: self._say_goodbye(_FAILED))
        atexit.register(self._say_goodbye, _LEFT)
        threading.Thread(target=self._watch, name="presence", daemon=True).start()

    def describe(self) -> str:
        """Return which ranks keep this one waiting, as far as this rank can see."""
        late = [f"{peer} does not answer" for peer in self._peers if peer.silent_seconds > _SILENT_SECONDS]
        late = late or [f"{peer} has not begun step {self.step}" for peer in self._peers if peer.step < self.step]
        return ", ".join(late) or "every rank that can be seen from here has begun that step"

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for peer in self._peers:
            peer.connection.setblocking(False)
            selector.register(peer.connection, selectors.EVENT_READ, peer)
        last_time = time.monotonic()
        while self._peers or self._end_time is not None:
            for key, _ in selector.select(_INTERVAL_SECONDS):
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)
                    self._peers.remove(key.data)
                    key.data.connection.close()
            now = time.monotonic()
            if self._end_time is not None and now > self._end_time:
                leave(RankLostError.exit_code)
            if now - last_time >= _INTERVAL_SECONDS:
                self._send(self.step)
                # Time in which this process itself was stopped does not count as silence of the others.
                self._count_silence(min(now - last_time, _INTERVAL_SECONDS))
                last_time = now

    def _count_silence(self, seconds: float) -> None:
        for peer in self._peers:
            peer.silent_seconds += seconds
            if peer.silent_seconds > self.silence_limit_seconds:
                place = f"for {peer.silent_seconds:.0f} s, last seen in step {peer.step}"
                leave(StalledError.exit_code, f"{peer} does not answer {place}; {RESUME_HINT}")

    def _receive(self, peer: _Peer) -> bool:
        """Read what a rank has sent; return False if it has left."""
        try:
            data = peer.connection.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            if not self._is_leaving and self._end_time is None:
                leave(RankLostError.exit_code, f"{peer} is gone, last seen in step {peer.step}; {RESUME_HINT}")
            return False
        peer.received += data
        peer.silent_seconds = 0.0
        end = len(peer.received) // _NUMBER.size * _NUMBER.size
        numbers = [number for (number,) in _NUMBER.iter_unpack(peer.received[:end])]
        peer.received = peer.received[end:]
        if _FAILED in numbers:
            # Other ranks may have the same error, and end by themselves with its exit code. This one ends after a
            # while in any case, since it would wait forever for the rank that failed.
            self._end_time = time.monotonic() + _GRACE_SECONDS
            self._send(_FAILED)
        elif numbers and numbers[-1] >= 0:
            peer.step = numbers[-1]
        return not {_FAILED, _LEFT} & set(numbers)

    def _send(self, number: int) -> None:
        for peer in list(self._peers):
            with contextlib.suppress(OSError):  # full or closed: the thread notices when it receives
                peer.connection.send(_NUMBER.pack(number))

    def _say_goodbye(self, number: int) -> None:
        self._is_leaving = True
        self._send(number)
        # The receiver closes the connection. If this side closed it while data is unread, the connection would be
        # reset, and the number could be lost.
        deadline = time.monotonic() + _GOODBYE_SECONDS
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.connection.settimeout(max(0.01, deadline - time.monotonic()))
                while peer.connection.recv(4096):
                    pass


def _listen(listener: list[socket.socket]) -> dict[str, Any]:
    """Open rank 0's port; return what the other ranks need to connect."""
    listener.append(socket.create_server(("", 0), backlog=1024))
    interfaces = psutil.net_if_addrs().values()
    return {
        "addresses": [entry.address for entries in interfaces for entry in entries if entry.family == socket.AF_INET],
        "port": listener[0].getsockname()[1],
        "secret": secrets.token_hex(32),
        "host": _host(),
        "place": _place(),
    }


def _accept(listener: socket.socket, num_peers: int, offer: dict[str, Any]) -> list[_Peer]:
    """Accept the other ranks, and no other program, on rank 0; then close the port."""
    peers: dict[int, _Peer] = {}
    deadline = time.monotonic() + _FIND_SECONDS

    def let_in(connection: socket.socket) -> None:
        try:
            rank, place = prove_as_root(connection, bytes.fromhex(offer["secret"]))
            peers[rank] = _Peer(rank, place, connection)
        except OSError:
            connection.close()

    # Several at once, so that ranks do not wait for another program that connects and sends nothing.
    with listener, ThreadPoolExecutor(_MAX_HANDSHAKES) as pool:
        listener.settimeout(_ACCEPT_SECONDS)
        while len(peers) < num_peers and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                pool.submit(let_in, listener.accept()[0])
    if len(peers) < num_peers:
        _log.warning(
            "%d of %d ranks cannot reach rank 0 over TCP: if one of them is lost, nobody can say which.",
            num_peers - len(peers),
            num_peers,
        )
    return list(peers.values())


def _connect(rank: int, offer: dict[str, Any]) -> list[_Peer]:
    """Connect one of the other ranks to rank 0, over the first of its addresses that answers."""
    for address in offer["addresses"]:
        # On another host a loopback address leads to the programs of that host.
        if ipaddress.ip_address(address).is_loopback and offer["host"] != _host():
            continue
        try:
            connection = socket.create_connection((address, offer["port"]), _CONNECT_SECONDS)
        except OSError:
            continue
        try:
            prove_as_rank(connection, bytes.fromhex(offer["secret"]), rank, _place())
            return [_Peer(0, offer["place"], connection)]
        except OSError:
            connection.close()
    return []


def _host() -> str:
    """Return an identifier that is the same for processes with the same loopback addresses."""
    return namespace_id("net") or socket.gethostname()


def _place() -> str:
    return f"host {socket.gethostname()[:30]}, process {os.getpid()}"
