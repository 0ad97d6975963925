"""What a run has brought, in one sentence, from the figures of its report."""

from collections.abc import Mapping
from typing import Any

from resrep_dist.config.tasks import Score, score_of
from resrep_dist.reporting.goals import outcome_of

# Latencies that differ by less, as a fraction, count as equal: they are medians on a machine that others may use.
_SAME_LATENCY = 0.03


def verdict(report: Mapping[str, Any]) -> str:
    """Return the verdict on a finished run.

    As in `53 % fewer multiply-adds, same accuracy on 360 images, 6 % faster here.`

    Args:
        report: Report of the run.
    """
    if "slim" not in report:
        final = report["final"]
        size = f", {final['macs'] / 1e6:,.2f} million multiply-adds" if final["macs"] else ""
        score = score_of(final)
        return f"Trained without pruning: {score.value:.2f} % {_noun(score)} {_on_images(report)}{size}."
    parts = [_savings(report), _accuracy(report), _speed(report)]
    if report.get("target_missed"):
        noun, asked, _ = outcome_of(report)
        less = "less" if noun == "latency" else "fewer"
        parts[0] = f"Target missed, {100 * (1 - asked):.0f} % {less} {noun} were asked for: {parts[0]}"
    if report.get("is_end_of_training") is False:
        step = report["made_from"]["step"]
        parts[-1] += f"; made from the checkpoint of step {step:,}, which is not the end of the training"
    return f"{', '.join(parts)}."


def is_good(report: Mapping[str, Any]) -> bool:
    """Return True for a report without problems, whose target is met.

    Args:
        report: Report of a run.
    """
    return not report.get("problems") and not report.get("target_missed")


def _savings(report: Mapping[str, Any]) -> str:
    saved = 100 * (1 - report["slim"]["macs"] / report["base"]["macs"])
    return f"{saved:.0f} % fewer multiply-adds" if round(saved) else "as many multiply-adds as before"


def _accuracy(report: Mapping[str, Any]) -> str:
    before, score, count = score_of(report["base"]).value, score_of(report["slim"]), _num_images(report)
    after, noun = score.value, _noun(score)
    difference = after - before
    # The scores of other tasks are no shares of images.
    count = count if score.key == "top1" else None
    num_images = round(abs(difference) * count / 100) if count else None
    if num_images == 0 or abs(difference) < 0.005:
        return f"same {noun} {_on_images(report)}"
    way = "higher" if difference > 0 else "lower"
    which = f", {num_images:,} of {count:,} images" if count else ""
    return f"{noun} {abs(difference):.2f} points {way} ({before:.2f} to {after:.2f} %{which})"


def _noun(score: Score) -> str:
    return "accuracy" if score.key == "top1" else score.name


def _speed(report: Mapping[str, Any]) -> str:
    before, after = (report[name].get("latency_ms") for name in ("base", "slim"))
    if not before or not after:
        return "time not measured"
    ratio = before / after
    if abs(ratio - 1) < _SAME_LATENCY:
        return "as fast as before here"
    if ratio >= 2:
        return f"{ratio:.1f} times as fast here"
    return f"{100 * (ratio - 1):.0f} % faster here" if ratio > 1 else f"{100 * (after / before - 1):.0f} % slower here"


def _num_images(report: Mapping[str, Any]) -> int | None:
    """Return the size of the validation set; None for reports of 0.2.0 and before, which do not have it."""
    number = (report.get("usage") or {}).get("data", {}).get("num_validation_images")
    return int(number) if number else None


def _on_images(report: Mapping[str, Any]) -> str:
    count = _num_images(report)
    return f"on {count:,} images" if count else "on the validation images"
