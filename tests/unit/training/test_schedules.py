from resrep_dist.config import PhaseConfig
from resrep_dist.errors import ConfigError
from resrep_dist.training.schedules import PhaseSchedule, phase_schedule
from tests.networks import small_config

import numpy as np
import pytest


def test_the_schedule_warms_up_goes_to_zero_and_extends_at_a_tenth():
    schedule = PhaseSchedule(1.0, num_steps=100, warmup_steps=10, extension_steps=20)
    rates = [float(schedule(step)) for step in range(120)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0) and rates[99] < 0.001
    assert rates[100] == pytest.approx(0.1) and rates[119] < 0.002


def test_steps_multiply_the_rate_at_each_milestone_and_warm_up_comes_first():
    phase = PhaseConfig(
        num_epochs=10.0, learning_rate=0.2, warmup_epochs=1.0, reference_batch_size=64,
        schedule="step", milestone_epochs=(5.0, 8.0), milestone_factor=0.5,
    )  # fmt: skip
    schedule = phase_schedule(phase, global_batch_size=128, num_steps=100, extension_steps=10)
    expected = np.full(110, 0.4)
    expected[:10] *= np.arange(1, 11) / 10
    expected[50:] *= 0.5
    expected[80:] *= 0.5
    expected[100:] = 0.4 * 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10))
    np.testing.assert_allclose(schedule(np.arange(110)), expected, rtol=1e-6)
    assert float(schedule(79)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"schedule": "step"}, "train.milestone_epochs: none given, expected"),
        ({"milestone_epochs": [2]}, "train.milestone_epochs: given, but train.schedule is cosine"),
        ({"schedule": "step", "milestone_epochs": [3, 2]}, "received 3, 2, expected rising"),
        ({"schedule": "step", "milestone_epochs": [2, 6]}, "received 2, 6, expected rising"),
        ({"schedule": "step", "milestone_epochs": [1], "warmup_epochs": 1.5}, "between train.warmup_epochs (1.5)"),
    ],
)
def test_impossible_milestones_are_refused(changes, expected):
    with pytest.raises(ConfigError) as error:
        small_config(train=changes)
    assert expected in str(error.value)
