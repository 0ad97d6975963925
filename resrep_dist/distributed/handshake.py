"""Two processes prove to each other that they know a secret, without sending it.

Each side answers a new random number of the other side with an HMAC. So a program that receives or records the messages
cannot use them to be accepted. All messages have a fixed length.
"""

import hmac
import secrets
import socket
import struct
import time

_MAGIC = b"resrep presence\n"
# Length of random numbers, and of proofs, which are HMAC-SHA256.
_NONCE_BYTES = _PROOF_BYTES = 32
_WHO = struct.Struct("!q64s")
_MESSAGE_SECONDS = 3.0


def prove_as_root(connection: socket.socket, secret: bytes) -> tuple[int, str]:
    """Prove to another process that this is rank 0, and check that it is a rank.

    Args:
        connection: A connection that the other process opened.
        secret: The secret of this run.

    Returns:
        Rank and place of the other process.

    Raises:
        OSError: If the other process does not know the secret.
    """
    hello = _read(connection, len(_MAGIC) + _NONCE_BYTES)
    if not hello.startswith(_MAGIC):
        raise ConnectionRefusedError
    nonce = secrets.token_bytes(_NONCE_BYTES)
    nonces = hello[len(_MAGIC) :] + nonce
    connection.sendall(nonce + _proof(secret, b"root", nonces))
    who = _read(connection, _WHO.size)
    _check_proof(connection, _proof(secret, b"rank", nonces + who))
    connection.sendall(_proof(secret, b"done", nonces))
    rank, place = _WHO.unpack(who)
    return rank, place.rstrip(b"\0").decode("utf-8", "replace")


def prove_as_rank(connection: socket.socket, secret: bytes, rank: int, place: str) -> None:
    """Check that the other process is rank 0, then prove to it that this is a rank.

    Args:
        connection: A connection that this process opened.
        secret: The secret of this run.
        rank: Number of this rank.
        place: Host and process, at most 64 bytes in UTF-8.

    Raises:
        OSError: If the other process does not know the secret.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(_MAGIC + nonce)
    nonces = nonce + _read(connection, _NONCE_BYTES)
    _check_proof(connection, _proof(secret, b"root", nonces))
    who = _WHO.pack(rank, place.encode())
    connection.sendall(who + _proof(secret, b"rank", nonces + who))
    _check_proof(connection, _proof(secret, b"done", nonces))


def _proof(secret: bytes, purpose: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, purpose + text, "sha256")


def _check_proof(connection: socket.socket, expected: bytes) -> None:
    if not hmac.compare_digest(_read(connection, _PROOF_BYTES), expected):
        raise ConnectionRefusedError


def _read(connection: socket.socket, num_bytes: int) -> bytes:
    """Read exactly this number of bytes; raise an OSError if they do not arrive within `_MESSAGE_SECONDS`."""
    data, deadline = b"", time.monotonic() + _MESSAGE_SECONDS
    while len(data) < num_bytes:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        part = connection.recv(num_bytes - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data
