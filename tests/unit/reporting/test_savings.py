"""What shrinking saved during a run."""

from resrep_dist.reporting.savings import describe_savings, savings_of

import pytest

CURVES = {
    "shrink/training_macs_fraction": [(40, 0.8), (60, 0.5)],
    "shrink/build_seconds": [(40, 0.2), (60, 0.3)],
    "shrink/tracing_seconds": [(40, 1.0), (60, 0.5)],
    # The first of each size is not of that size alone.
    "time/step_seconds": [(10, 3.0), (20, 0.2), (30, 0.2), (40, 0.2), (50, 0.15), (70, 0.9), (80, 0.1), (90, 0.1)],
}


def test_multiply_adds_of_all_steps_and_the_time_that_smaller_steps_saved():
    savings = savings_of(CURVES, 1.05, 100)
    assert savings["macs_vs_plain"] == pytest.approx(0.4 * 1.05 + 0.2 * 0.8 + 0.4 * 0.5)
    taught = savings_of(CURVES, 1.05, 100, has_teacher=True)
    assert taught == savings | {"macs_vs_plain": pytest.approx(savings["macs_vs_plain"] + 1 / 3)}
    assert savings["first_step_seconds"] == 0.2 and savings["last_step_seconds"] == 0.1
    assert savings["saved_seconds"] == pytest.approx(20 * 0.05 + 40 * 0.1 - 2.0)
    assert describe_savings(savings) == (
        "Training took 78 % of the multiply-adds of plain training; a step took 200 ms at first and 100 ms at the end, "
        "3 s saved."
    )


def test_a_size_without_a_logging_step_has_the_time_of_the_one_before():
    curves = {**CURVES, "time/step_seconds": [(20, 0.2), (80, 0.1)]}
    assert savings_of(curves, 1.05, 100)["saved_seconds"] == pytest.approx(40 * 0.1 - 2.0)


def test_shrinks_after_a_checkpoint_do_not_count():
    savings = savings_of(CURVES, 1.05, 60)
    assert savings["macs_vs_plain"] == pytest.approx((40 * 1.05 + 20 * 0.8) / 60)
    assert savings["saved_seconds"] == pytest.approx(20 * 0.05 - 1.2)
    assert "0 s lost" in describe_savings(savings)


@pytest.mark.parametrize("curves", [{}, {"time/step_seconds": [(10, 0.1)]}])
def test_a_run_that_does_not_shrink_costs_what_its_compactors_do(curves):
    savings = savings_of(curves, 1.058, 100)
    assert savings == {"macs_vs_plain": pytest.approx(1.058)}
    assert describe_savings(savings) == "Training took 106 % of the multiply-adds of plain training."
