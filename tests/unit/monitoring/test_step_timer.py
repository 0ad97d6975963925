import logging

from resrep_dist.monitoring.step_timer import DataWait

import pytest


def times(fraction):
    return {"time/step_seconds": 0.2, "time/data_seconds": 0.2 * fraction}


@pytest.mark.parametrize(
    "fractions, warned_at",
    [([0.04] * 9, []), ([0.5, 0.0, 0.06, 0.07, 0.01, 0.9, 0.9], []), ([0.01, 0.06, 0.07, 0.08, 0.01, 1, 1, 1], [4])],
)
def test_a_wait_for_data_of_more_than_a_twentieth_of_a_step_is_warned_of_once(fractions, warned_at, caplog):
    wait = DataWait()
    with caplog.at_level(logging.WARNING):
        for step, fraction in enumerate(fractions, 1):
            wait.see(step, times(fraction))
    assert [int(message.split(":")[0].removeprefix("Step ")) for message in caplog.messages] == warned_at
    assert all("8 % of a step is spent waiting for data, more than 5 %" in message for message in caplog.messages)
