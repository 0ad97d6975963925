"""What the tests of the launchers share."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def a_time_limit_from_outside_leaves_nothing_behind():
    """SIGTERM ends the tests as Ctrl-C does, so that what they started goes with them."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)
