"""launch/supervise.sh around a stand-in for launch/local.sh that ends with given codes."""

import os
import shutil
import signal
import subprocess
import time

from tests.ranks.launcher import REPOSITORY

import pytest

# Takes the first line of `codes` as its exit code and writes down how it was called.
LOCAL = """
echo "$RANKS $*" >>calls
code=$(head -n 1 codes)
sed -i 1d codes
if [[ $code == wait ]]; then
    trap 'exit 143' TERM
    sleep 60 &
    wait
fi
exit "$code"
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "supervise.sh", tmp_path / "launch")
    (tmp_path / "launch" / "local.sh").write_text(LOCAL)

    def start(codes, **environment):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        return subprocess.Popen(
            ["bash", "launch/supervise.sh", "--set", "seed=1"],
            cwd=tmp_path, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def test_faults_are_followed_by_restarts_and_the_end_is_the_end(tmp_path, start):
    process = start([8, 7, 1, 3, 137, 0], RANKS="3")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert calls(tmp_path) == ["3 --set seed=1"] * 6
    assert "supervise.sh: ended with code 8; restart 1 on 3 rank(s)" in errors and "restart 5" in errors


def test_after_a_lost_rank_it_may_go_on_with_one_less(tmp_path, start):
    assert start([8, 8, 7, 8, 0], RANKS="3", FEWER_RANKS="1").wait(20) == 0
    assert [call.split()[0] for call in calls(tmp_path)] == ["3", "2", "1", "1", "1"]


@pytest.mark.parametrize("code", [2, 4, 5, 6, 9, 10, 130, 143])
def test_what_a_restart_cannot_mend_is_not_restarted(tmp_path, start, code):
    assert start([code, 0]).wait(20) == code
    assert len(calls(tmp_path)) == 1


def test_it_gives_up_after_a_number_of_restarts(tmp_path, start):
    process = start([8, 8, 7, 0], MAX_RESTARTS="2")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 7 and len(calls(tmp_path)) == 3
    assert "ended with code 7 after 2 restarts, MAX_RESTARTS; giving up" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_handed_on_and_ends_it(tmp_path, start, number):
    process = start(["wait", 0])
    while not (tmp_path / "calls").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(20) == 143
    assert len(calls(tmp_path)) == 1
