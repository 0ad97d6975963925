"""Processes that watch each other, without Horovod: each plays a rank."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from resrep_dist.distributed import presence

import pytest

# argv: rank, size, folder. Rank 0's word travels by a file.
RANK = """
import json, os, sys, time
from pathlib import Path
from resrep_dist.config.schema import FaultsConfig
from resrep_dist.distributed.environment import leave
from resrep_dist.distributed.presence import Presence
from resrep_dist.distributed.watchdog import Watchdog

rank, size, offer = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3], "offer")

def from_root(function):
    if rank == 0:
        offer.with_suffix(".new").write_text(json.dumps(function()))
        os.replace(offer.with_suffix(".new"), offer)
    while not offer.exists():
        time.sleep(0.01)
    return json.loads(offer.read_text())

presence = Presence(rank, size, from_root)
watchdog = Watchdog(rank == 0, presence)
print("here", flush=True)
"""
TRAINS = """
with watchdog.watching(FaultsConfig(stall_warning_seconds=1.0, stall_limit_seconds=3.0, long_limit_seconds=60.0)):
    for step in range(1, 400):
        watchdog.beat(step)
        time.sleep(0.05)
"""


@contextlib.contextmanager
def ranks(folder, size, code=TRAINS, of_last=None):
    codes = [code] * (size - 1) + [of_last or code]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK + codes[rank], str(rank), str(size), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout.readline() == "here\n", process.stderr.read()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def lines_of(process):
    return [line for line in process.stderr.read().splitlines() if line.startswith("resrep: ")]


@pytest.mark.parametrize("size, killed", [(2, 1), (4, 2)])
def test_rank_0_names_a_killed_rank_and_all_end_at_once(tmp_path, size, killed):
    with ranks(tmp_path, size) as processes:
        time.sleep(0.5)
        start = time.monotonic()
        processes.pop(killed).kill()
        assert [process.wait(10) for process in processes] == [8] * (size - 1)
        assert time.monotonic() - start < 5
        (line,) = lines_of(processes[0])
        assert line.startswith(f"resrep: error: rank {killed} (host ") and "is gone, last seen in step " in line
        for process in processes[1:]:
            assert lines_of(process) == [], "rank 0 has said it for all"


def test_where_rank_0_is_killed_the_others_name_it(tmp_path):
    with ranks(tmp_path, 3) as processes:
        processes[0].kill()
        for process in processes[1:]:
            assert process.wait(10) == 8
            assert lines_of(process)[0].startswith("resrep: error: rank 0 (host ")


@pytest.mark.parametrize("stopped, names_it", [(1, 0), (0, 1)])
def test_a_stopped_rank_is_stalled(tmp_path, stopped, names_it):
    with ranks(tmp_path, 2) as processes:
        processes[stopped].send_signal(signal.SIGSTOP)
        assert processes[names_it].wait(20) == 7
        (line,) = lines_of(processes[names_it])
        assert re.match(rf"resrep: error: rank {stopped} \(host \S+, process \d+\) does not answer for [34] s", line)


@pytest.mark.slow
def test_all_stopped_and_continued_is_no_fault(tmp_path):
    # As when Slurm suspends a job.
    with ranks(tmp_path, 2) as processes:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                process.send_signal(number)
            time.sleep(4.0)
        assert [process.poll() for process in processes] == [None, None]


def test_a_rank_without_progress_ends_and_says_who_is_behind(tmp_path):
    stalls = TRAINS.replace("time.sleep(0.05)", "time.sleep(60 if step == 20 else 0.05)")
    earlier = stalls.replace("step == 20", "step == 10")
    with ranks(tmp_path, 2, stalls, earlier) as processes:
        assert processes[0].wait(20) == 7
        message = processes[0].stderr.read()
        assert "No progress for 1 s in step 20; rank 1 (host" in message
        assert "resrep: error: no progress for 3 s in step 20; rank 1 (host" in message
        assert ") has not begun step 20; start the same command again" in message
        assert processes[1].wait(10) in (7, 8)


@pytest.mark.slow
def test_the_first_step_and_work_of_rank_0_may_take_longer(tmp_path):
    code = TRAINS.replace("time.sleep(0.05)", "time.sleep(4 if step == 1 else 0.05)").replace("400", "10")
    code += """
with watchdog.watching(FaultsConfig(stall_warning_seconds=1.0, stall_limit_seconds=3.0, long_limit_seconds=60.0)):
    for step in range(1, 4):
        watchdog.beat(step)
    with watchdog.patient():
        time.sleep(4)
time.sleep(4)
"""
    with ranks(tmp_path, 2, code) as processes:
        codes = [process.wait(40) for process in processes]
        assert codes == [0, 0], [lines_of(process) for process in processes]


def test_who_leaves_well_ends_nobody_and_who_fails_ends_all_with_one_line(tmp_path):
    (tmp_path / "well").mkdir()
    with ranks(tmp_path / "well", 3, "time.sleep(1.5)", "pass") as processes:
        assert [process.wait(10) for process in processes] == [0, 0, 0]
        assert all(lines_of(process) == [] for process in processes)
    with ranks(tmp_path, 3, TRAINS, "leave(2, 'an image cannot be read')") as processes:
        assert [process.wait(10) for process in processes] == [8, 8, 2]
        assert [lines_of(process) for process in processes] == [[], [], ["resrep: error: an image cannot be read"]]


def test_a_stranger_is_not_let_in_and_the_port_is_closed_afterwards(tmp_path):
    import json

    command = [sys.executable, "-c", RANK + TRAINS]
    with subprocess.Popen([*command, "0", "2", str(tmp_path)], stdout=subprocess.PIPE) as root:
        while not (tmp_path / "offer").exists():
            time.sleep(0.02)
        port = json.loads((tmp_path / "offer").read_text())["port"]
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"x" * 48)
            assert stranger.recv(100) == b""
        with subprocess.Popen([*command, "1", "2", str(tmp_path)], stdout=subprocess.PIPE) as other:
            assert root.stdout.readline() == other.stdout.readline() == b"here\n"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            other.kill()
        root.kill()


@pytest.fixture
def offer():
    """What rank 0 tells the others, and its open port, on which nobody waits yet."""
    listeners = []
    offer = presence._listen(listeners)
    with listeners[0]:
        yield offer | {"listener": listeners[0]}


@contextlib.contextmanager
def stranger_listening(offer, answers):
    """Another program on the port that a rank tries; the offer that leads there, and all that it receives."""
    received = bytearray()

    def listen():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(1.0)
                    for answer in answers:
                        received.extend(connection.recv(4096))
                        connection.sendall(answer)
                    while data := connection.recv(4096):
                        received.extend(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield offer | {"addresses": ["127.0.0.1"], "port": server.getsockname()[1]}, received
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("answers", [(), (b"x" * 64,), (b"x" * 64, b"x" * 32)])
def test_a_strangers_listener_learns_nothing_with_which_it_could_be_let_in(offer, answers, monkeypatch):
    monkeypatch.setattr(presence, "_FIND_SECONDS", 2.0)
    with stranger_listening(offer, answers) as (leads_astray, received):
        assert presence._connect(1, leads_astray) == []
    assert received and offer["secret"].encode() not in received
    assert bytes.fromhex(offer["secret"]) not in received
    # Played back to rank 0, it opens nothing.
    with socket.create_connection(("127.0.0.1", offer["port"])) as connection:
        connection.sendall(bytes(received) + b"x" * 104)
        assert presence._accept(offer["listener"], 1, offer) == []


def test_two_that_know_the_secret_find_each_other_beside_strangers(offer):
    accepted = []
    thread = threading.Thread(target=lambda: accepted.extend(presence._accept(offer["listener"], 1, offer)))
    thread.start()
    # Silent, gone at once, and one byte.
    silent, gone, short = (socket.create_connection(("127.0.0.1", offer["port"])) for _ in range(3))
    gone.close()
    short.sendall(b"x")
    (root,) = presence._connect(1, offer)
    thread.join()
    assert root.rank == 0 and [peer.rank for peer in accepted] == [1] and accepted[0].place == root.place
    for connection in (silent, short, root.connection, accepted[0].connection):
        connection.close()


def test_loopback_is_tried_on_rank_0s_own_host_only(offer):
    with stranger_listening(offer, ()) as (leads_astray, received):
        elsewhere = leads_astray | {"host": "another one", "addresses": ["127.0.0.1", "127.0.1.1"]}
        assert presence._connect(1, elsewhere) == []
        assert received == b""
        assert presence._connect(1, leads_astray) == []
        assert received != b""
