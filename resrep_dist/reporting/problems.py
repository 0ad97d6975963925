"""What is wrong with the result of a run."""

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)


def problems_of(report: Mapping[str, Any], num_classes: int) -> list[str]:
    """Why a run's models are of no use, a line each; nothing for good ones. A missed target is told elsewhere.

    Args:
        report: as `merge_run` and `save_final` make it; top-1 in percent.
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
