"""Finds problems in the results of a run."""

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)


def problems_of(report: Mapping[str, Any], num_classes: int) -> list[str]:
    """Return why the models of a run are unusable, one line per reason; empty for good models.

    A missed target is not a problem in this sense; it is reported separately.

    Args:
        report: Report of `merge_run` or `save_final`.
        num_classes: Number of classes.
    """
    problems = []
    guessing = 100.0 / num_classes
    for name in ("base", "slim", "final"):
        top1 = report[name]["top1"] if name in report else 100.0
        if top1 < min(2.0 * guessing, guessing + (100.0 - guessing) / 10):
            problems.append(f"the {name} model is broken: top-1 {top1:.2f} %, guessing gives {guessing:.2f} %")
    if "slim" in report and report["slim"]["top1"] < report["base"]["top1"] / 2:
        problems.append(
            f"the slim model has lost more than half of the base's top-1: {report['slim']['top1']:.2f} % are left of "
            f"{report['base']['top1']:.2f} %"
        )
    return problems
