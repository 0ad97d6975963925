"""Finds problems in the results of a run."""

import logging
from collections.abc import Mapping
from typing import Any

from resrep_dist.config.tasks import score_of
from resrep_dist.errors import BrokenModelError, TargetMissedError
from resrep_dist.reporting.goals import outcome_of

_log = logging.getLogger(__name__)


def guessing_limit(guessing: float) -> float:
    """Return the score below which a model counts as guessing, percent.

    Args:
        guessing: Score of a model that guesses, percent.
    """
    return min(2.0 * guessing, guessing + (100.0 - guessing) / 10)


def require_success(report: Mapping[str, Any]) -> None:
    """Raise an error for a report with problems, or of a missed target.

    Args:
        report: Report of a run.

    Raises:
        BrokenModelError: If the report has problems.
        TargetMissedError: If it has none, and the target was missed.
    """
    if report.get("problems"):
        raise BrokenModelError(f"--strict: {'; '.join(report['problems'])}")
    if report.get("target_missed"):
        noun, asked, left = outcome_of(report)
        raise TargetMissedError(
            f"--strict: the target was missed: {100 * left:.1f} % of the {noun} are left, {100 * asked:.1f} % "
            "were asked for; the slim model is written"
        )


def problems_of(report: Mapping[str, Any], num_classes: int) -> list[str]:
    """Return why the models of a run are unusable, one line per reason; empty for good models.

    A missed target is not a problem in this sense; it is reported separately.

    Args:
        report: Report of `merge_run` or `save_final`.
        num_classes: Number of classes.
    """
    problems = []
    for name in ("base", "slim", "final"):
        if name not in report:
            continue
        score, guessing = score_of(report[name]), report[name].get("guessing", 100.0 / num_classes)
        if score.value < guessing_limit(guessing):
            problems.append(
                f"the {name} model is broken: {score.name} {score.value:.2f} %, guessing gives {guessing:.2f} %"
            )
    if "slim" in report and score_of(report["slim"]).value < score_of(report["base"]).value / 2:
        score, base = score_of(report["slim"]), score_of(report["base"])
        problems.append(
            f"the slim model has lost more than half of the base's {score.name}: {score.value:.2f} % are left of "
            f"{base.value:.2f} %"
        )
    return problems
