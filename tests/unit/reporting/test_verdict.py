"""The verdict says what the figures say, also where that is not good."""

from resrep_dist.reporting.verdict import is_good, verdict

import pytest


def report(base_top1=99.0, slim_top1=99.0, slim_macs=47, latencies=(1.06, 1.0), num_images=360, **more):
    base, slim = ({"top1": top1, "latency_ms": ms} for top1, ms in zip((base_top1, slim_top1), latencies, strict=True))
    usage = {"data": {"num_validation_images": num_images}} if num_images else None
    figures = {"base": base | {"macs": 100}, "slim": slim | {"macs": slim_macs}, "target_macs_fraction": 0.47}
    return figures | {"usage": usage, "target_missed": slim_macs > 47, "problems": []} | more


def test_all_is_well():
    assert verdict(report()) == "53 % fewer multiply-adds, same accuracy on 360 images, 6 % faster here."
    assert is_good(report())


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"slim_top1": 98.0}, "accuracy 1.00 points lower (99.00 to 98.00 %, 4 of 360 images), "),
        ({"slim_top1": 99.5}, "accuracy 0.50 points higher (99.00 to 99.50 %, 2 of 360 images), "),
        ({"slim_top1": 98.0, "num_images": None}, "accuracy 1.00 points lower (99.00 to 98.00 %), "),
        ({"num_images": None}, "same accuracy on the validation images, "),
        ({"latencies": (1.0, 1.25)}, ", 25 % slower here."),
        ({"latencies": (1.0, 1.01)}, ", as fast as before here."),
        ({"latencies": (3.0, 1.0)}, ", 3.0 times as fast here."),
        ({"latencies": (None, None)}, ", time not measured."),
        ({"slim_macs": 69}, "Target missed, 53 % fewer multiply-adds were asked for: 31 % fewer multiply-adds, "),
        ({"slim_macs": 100}, "were asked for: as many multiply-adds as before, "),
        (
            {"is_end_of_training": False, "made_from": {"step": 1200}},
            "; made from the checkpoint of step 1,200, which is not the end of the training.",
        ),
    ],
)
def test_what_is_not_well_is_said(figures, expected):
    assert expected in verdict(report(**figures))


def test_a_missed_target_and_a_broken_model_are_not_good():
    assert not is_good(report(slim_macs=69)) and not is_good(report(problems=["broken"]))


def test_a_run_without_pruning_has_its_accuracy():
    final = {"top1": 97.5, "macs": 12_345_678}
    assert verdict({"final": final}) == (
        "Trained without pruning: 97.50 % accuracy on the validation images, 12.35 million multiply-adds."
    )
    assert verdict({"final": final | {"macs": None}}).endswith("on the validation images.")
