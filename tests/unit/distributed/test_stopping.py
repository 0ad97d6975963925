import os
import signal
import subprocess
import sys
import time

from resrep_dist.distributed.stopping import LOOK_SECONDS, StopRequest

import pytest

WAITS = """
import time
from pathlib import Path
from resrep_dist.distributed.stopping import StopRequest
with StopRequest(None) as stop:
    print("ready", flush=True)
    while not stop.is_set():
        time.sleep(0.05)
    print("asked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_asks_and_a_later_one_ends_the_process(number):
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        # What a launcher sends at once is the same wish.
        process.send_signal(number)
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == 128 + number


def test_a_file_asks_too_and_handlers_are_put_back(tmp_path):
    (tmp_path / "stop").touch()
    os.utime(tmp_path / "stop", (time.time() - 3600,) * 2)
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest(tmp_path) as stop:
        assert not stop.is_set(), "a file of an earlier run counts for nothing"
        (tmp_path / "stop").touch()
        time.sleep(LOOK_SECONDS)
        assert stop.is_set()
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before
    assert os.listdir(tmp_path) == []


def test_under_a_script_its_start_says_which_file_is_of_an_earlier_run(tmp_path, monkeypatch):
    start_time = time.time() - 3600  # the ranks started late
    monkeypatch.setenv("RESREP_START_TIME", str(int(start_time)))
    for age_seconds, counts in ((60, False), (5, True), (-60, True)):
        (tmp_path / "stop").touch()
        os.utime(tmp_path / "stop", (start_time - age_seconds,) * 2)
        with StopRequest(tmp_path) as stop:
            assert stop.is_set() == counts, age_seconds
        assert os.listdir(tmp_path) == []


def test_the_file_of_the_own_script_asks_and_that_of_another_does_not(tmp_path, monkeypatch):
    own, other = tmp_path / ".stop-host-7-1", tmp_path / ".stop-host-8-1"
    monkeypatch.setenv("RESREP_STOP", own.name)
    other.touch()
    with StopRequest(tmp_path) as stop:
        assert not stop.is_set()
        own.touch()
        time.sleep(LOOK_SECONDS)
        assert stop.is_set()
    assert os.listdir(tmp_path) == [other.name]
    # Asked while the ranks started, which took a while.
    own.touch()
    os.utime(own, (time.time() - 3600,) * 2)
    with StopRequest(tmp_path) as stop:
        assert stop.is_set()
