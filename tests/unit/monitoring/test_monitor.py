"""The progress of a run on a terminal, in a log, and where nobody wants it."""

import io
import logging
import os
import re
import select
import subprocess
import sys

from resrep_dist.monitoring.monitor import Monitor, configure_logging, make_console

import pytest
from rich.console import Console


def shown(is_terminal, width, is_quiet=False):
    """What a phase of 1,201 steps prints until step 300."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None)
    configure_logging(console, is_root=True, is_quiet=is_quiet)
    handler = logging.getLogger("resrep_dist").handlers[0]
    if isinstance(handler, logging.StreamHandler):
        handler.setStream(file)
    monitor = Monitor("prune", None, None if is_quiet else console, 1201)
    monitor.start(0)
    for step in range(100, 301, 100):
        monitor.progress(step, "loss 0.010  long", "loss 0.010  top-1 99.8 %  macs 100.0 %  556 images/s")
    monitor.close()
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_shows_step_values_and_time_left_on_one_line_of_a_terminal(width):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(True, width))
    last = re.split(r"[\r\n]+", text.strip())[-1]
    assert len(last) <= width
    assert re.search(r"300/1201 loss 0\.010  top-1 99\.8 %  macs 100\.0 %  556 images/s +(--:--|\d)", last), last


def test_a_log_gets_plain_lines_with_the_time_left():
    lines = shown(False, 80).splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"prune step 300/1201  loss 0\.010  long  \d:\d\d:\d\d left", lines[-1]), lines


def test_an_extension_is_counted_beside_the_phase_and_the_bar_ends_at_its_end():
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, width=120, force_terminal=is_terminal, color_system=None)
        configure_logging(console, is_root=True)
        handler = logging.getLogger("resrep_dist").handlers[0]
        if not is_terminal:
            handler.setStream(file)
        monitor = Monitor("prune", None, console, 1201)
        monitor.start(0)
        monitor.progress(1200, "loss 0.010", "loss 0.010")
        if is_terminal:
            monitor.finish(1201)
            monitor.close()
            text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", file.getvalue())
            assert "1201/1201" in re.split(r"[\r\n]+", text.strip())[-1]
        else:
            monitor.progress(1300, "loss 0.010", "loss 0.010")
            assert file.getvalue().splitlines()[-1] == "prune step 1201/1201  extension step 99  loss 0.010"


def test_quiet_shows_warnings_only():
    assert shown(False, 80, is_quiet=True) == "" == shown(True, 80, is_quiet=True)
    logger = logging.getLogger("resrep_dist")
    assert not logger.isEnabledFor(logging.INFO) and logger.isEnabledFor(logging.WARNING)


def test_a_launched_rank_draws_on_the_terminal_that_the_script_names(monkeypatch):
    ours, terminal = os.openpty()
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setenv("RESREP_TERMINAL", os.ttyname(terminal))
    console = make_console()
    assert console.is_terminal
    monitor = Monitor("prune", None, console, 100)
    monitor.start(0)
    monitor.progress(50, "", "loss 0.010")
    monitor.close()
    written = b""
    # It comes in parts.
    while select.select([ours], [], [], 1.0)[0]:
        written += os.read(ours, 100_000)
    assert b"50/100" in written
    monkeypatch.setenv("RESREP_TERMINAL", "/nowhere/tty")
    assert not make_console().is_terminal


@pytest.mark.parametrize("prints_to", ["terminal", "file"])
def test_a_rank_finds_the_terminal_of_the_launcher_that_a_user_has_typed(tmp_path, prints_to):
    launcher = tmp_path / "horovodrun"
    launcher.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\n"
        "found = subprocess.check_output([sys.executable, '-c', sys.argv[1]], text=True)\n"
        "open(sys.argv[2], 'w').write(found)\n"
    )
    launcher.chmod(0o755)
    rank = "from resrep_dist.distributed.environment import launcher_terminal; print(launcher_terminal())"
    _, terminal = os.openpty()
    environment = os.environ | {"HOROVOD_SIZE": "2"}
    with open(tmp_path / "log", "w") as log:
        output = terminal if prints_to == "terminal" else log
        subprocess.run([launcher, rank, tmp_path / "found"], stdout=output, env=environment, check=True)
    expected = os.ttyname(terminal) if prints_to == "terminal" else "None"
    assert (tmp_path / "found").read_text().strip() == expected
